// Writes lib/core/native-ops.ts, the TypeScript types of the native functions, from
// csrc/ops/ops.def, the only list of ops.
import { readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

const root = new URL("../", import.meta.url);
const source = readFileSync(new URL("csrc/ops/ops.def", root), "utf8");

const types = {
  In: "NativeTensor",
  Out: "NativeTensor",
  InOut: "NativeTensor",
  "std::optional<In>": "NativeTensor | null",
  "std::optional<Out>": "NativeTensor | null",
  "std::optional<InOut>": "NativeTensor | null",
  double: "number",
  int64_t: "number",
  bool: "boolean",
  "std::string": "string",
  IntList: "readonly number[]",
};

const camelCase = (name) => name.replace(/_(\w)/g, (_, letter) => letter.toUpperCase());

const methods = [];
for (const line of source.split("\n")) {
  if (!line.startsWith("LF_OP(")) continue;
  const match = /^LF_OP\((\w+), \(Stream& stream, (.+)\)\)$/.exec(line);
  if (!match)
    throw new Error(
      `ops.def: this line is not of the form LF_OP(name, (Stream& stream, ...)): ${line}`,
    );
  const [, name, list] = match;
  const args = list.split(", ").map((argument) => {
    const [type, argumentName] = argument.split(" ");
    const mapped = types[type];
    if (!mapped) throw new Error(`ops.def: ${name}: unknown argument type ${type}`);
    return `${camelCase(argumentName)}: ${mapped}`;
  });
  methods.push(`  ${camelCase(name)}(${args.join(", ")}): void;`);
}

const text = `// Generated from csrc/ops/ops.def by scripts/generate-ops.mjs. Do not edit.
import type { NativeTensor } from "./native.js";

/** The native kernels. Each call enqueues on the tensors' device and returns at once. */
export interface NativeOps {
${methods.join("\n")}
}

/** Names of all native kernels, for tests that go over every one. */
export const nativeOpNames = [
${methods.map((method) => `  "${/(\w+)\(/.exec(method)[1]}",`).join("\n")}
] as const;
`;

const target = new URL("lib/core/native-ops.ts", root);
let old = "";
try {
  old = readFileSync(target, "utf8");
} catch {
  // There is no old file before the first build.
}
if (old !== text) writeFileSync(target, text);
console.log(`${fileURLToPath(target)}: ${methods.length} ops`);
