import { readdirSync, readFileSync } from "node:fs";
import { dirname, join, relative, resolve } from "node:path";
import { describe, expect, test } from "vitest";
import { nativeOpNames } from "../../lib/core/native-ops.js";
import { root } from "../cli/build.js";
import { filesUnder } from "./sources.js";

/** Floors of lib/, lowest first; a file imports from its own floor or a lower one. */
const floors = [
  ["core"],
  ["files"],
  ["ops"],
  ["nn"],
  ["model", "optim"],
  ["data", "checkpoint", "dist", "generate"],
  ["prepare", "config", "plan", "eval", "export", "hub"],
  ["train", "serve", "report", "bench"],
  ["cli", "index"],
];

function floorOf(path: string): number {
  const part = path.split("/")[1]?.replace(/\.ts$/, "") as string;
  const floor = floors.findIndex((names) => names.includes(part));
  if (floor < 0) throw new Error(`${path} is on no floor: add it to the list`);
  return floor;
}

describe("floors", () => {
  test.each(filesUnder("lib", /\.ts$/))("%s imports from its floor or below", (path) => {
    const source = readFileSync(join(root, path), "utf8");
    for (const [, specifier] of source.matchAll(/(?:from|import\()\s*"(\.[^"]+)"/g)) {
      const target = relative(root, resolve(root, dirname(path), specifier as string)).replace(
        /\.js$/,
        ".ts",
      );
      expect(floorOf(target), `${path} imports ${target}`).toBeLessThanOrEqual(floorOf(path));
    }
  });

  test("CONTRIBUTING.md states these floors", () => {
    const order = floors.map((names) => names.filter((name) => name !== "index").join(", "));
    const text = readFileSync(join(root, "CONTRIBUTING.md"), "utf8").replace(/\s+/g, " ");
    expect(text).toContain(`\`${order.join(" < ")}\``);
  });

  // csrc/runtime < cpu, cuda, comm, io < napi. ops.def and its table belong to all of them.
  const native = ["runtime", "ops", "cpu", "cuda", "comm", "io", "napi"];
  const allowed: Record<string, string[]> = {
    runtime: ["runtime", "ops"],
    ops: ["runtime", "ops"],
    cpu: ["runtime", "ops", "cpu"],
    cuda: ["runtime", "ops", "cuda"],
    comm: ["runtime", "ops", "comm"],
    io: ["runtime", "io"],
    napi: native,
    fuzz: ["runtime", "io", "comm"],
  };
  test.each(filesUnder("csrc", /\.(cpp|h|cu|cuh)$/))(
    "%s includes from its floor or below",
    (path) => {
      const source = readFileSync(join(root, path), "utf8");
      const own = path.split("/")[1] as string;
      for (const [, target] of source.matchAll(/#include "([a-z_]+)\/[^"]+"/g)) {
        if (native.includes(target as string))
          expect(allowed[own], `${path} includes ${target}/`).toContain(target);
      }
    },
  );
});

describe("the model seam", () => {
  const outside = filesUnder("lib", /\.ts$/).filter((path) => !path.startsWith("lib/model/"));
  const particular = readdirSync(join(root, "lib/model"))
    .map((name) => name.replace(/\.ts$/, ""))
    .filter((name) => name.startsWith("llama"));

  test("there are architectures to keep apart", () => {
    expect(particular).toContain("llama");
  });

  test.each(outside)("%s imports and names no particular model", (path) => {
    const source = readFileSync(join(root, path), "utf8");
    for (const [, name] of source.matchAll(/"(?:\.\.?\/)+model\/([^"]+)\.js"/g)) {
      expect(particular, `${path} imports model/${name}`).not.toContain(name);
    }
    const code = source.replace(/\/\*[\s\S]*?\*\/|\/\/.*|"(?:[^"\\\n]|\\.)*"|`[^`]*`/g, "");
    expect(code.match(/\b(?:Llama|LlamaConfig|llamaConfig)\b/g) ?? []).toEqual([]);
  });
});

describe("the seven places of an operation", () => {
  const sources = filesUnder("lib", /\.ts$/).filter((path) => !path.endsWith("native-ops.ts"));
  const all = sources.map((path) => readFileSync(join(root, path), "utf8")).join("\n");

  test.each(nativeOpNames)("%s is used by the library", (name) => {
    expect(all).toMatch(new RegExp(`native(\\.|\\n\\s*\\.)${name}\\b|native\\[`));
  });

  // The fp8 files are what `model.fp8` is made of; test/ops/fp8.test.ts tests them together.
  const fp8 = ["fp8", "fp8-linear", "fp8-weights"];
  const helpers = ["index", "broadcast", "weight-gradient", ...fp8];
  const modules = filesUnder("lib/ops", /\.ts$/).map((path) =>
    (path.split("/").at(-1) as string).replace(/\.ts$/, ""),
  );
  test.each(modules.filter((name) => !helpers.includes(name)))(
    "lib/ops/%s.ts is exported and has its test",
    (name) => {
      expect(readFileSync(join(root, "lib/ops/index.ts"), "utf8")).toContain(`"./${name}.js"`);
      expect(readFileSync(join(root, `test/ops/${name}.test.ts`), "utf8")).toMatch(
        /\b(test|it)(\.each|\()/,
      );
    },
  );
});
