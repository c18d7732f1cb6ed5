/**
 * Child processes under the fault shim. The shim and the library are compiled once, into a folder.
 */
import { execFileSync, spawn } from "node:child_process";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import ts from "typescript";

const root = join(dirname(fileURLToPath(import.meta.url)), "..", "..", "..");

/** An empty folder that is removed with `remove()`. */
export function temporaryFolder(): { path: string; remove: () => void } {
  const path = mkdtempSync(join(tmpdir(), "llamaforge-test-"));
  return { path, remove: () => rmSync(path, { recursive: true, force: true }) };
}

export interface ChildResult {
  code: number | null;
  signal: NodeJS.Signals | null;
  lines: string[];
  stderr: string;
}

export interface Harness {
  /** Runs test/checkpoint/support/SCRIPT.ts under the shim. */
  run(
    script: "save-child" | "lock-child",
    args: readonly (string | number)[],
    environment?: Readonly<Record<string, string>>,
  ): Promise<ChildResult>;
  /** The compiled shim, for LD_PRELOAD. */
  shim: string;
  remove(): void;
}

// Not every supported Node runs TypeScript, and a process that is about to be killed should have no
// bundler's watcher. The few modules needed are therefore transpiled.
export function createHarness(): Harness {
  const cache = join(root, "node_modules", ".cache");
  mkdirSync(cache, { recursive: true });
  const folder = mkdtempSync(join(cache, "llamaforge-test-"));
  writeFileSync(join(folder, "package.json"), '{ "name": "llamaforge", "type": "module" }\n');
  const modules = [
    ...["core", "files", "checkpoint"].flatMap((room) =>
      readdirSync(join(root, "lib", room)).map((name) => `lib/${room}/${name}`),
    ),
    ...["save-child", "lock-child", "contents"].map((name) => `test/checkpoint/support/${name}.ts`),
  ];
  for (const path of modules) {
    if (!existsSync(join(root, path))) throw new Error(`${path} is missing`);
    const { outputText } = ts.transpileModule(readFileSync(join(root, path), "utf8"), {
      compilerOptions: { target: ts.ScriptTarget.ES2022, module: ts.ModuleKind.ESNext },
    });
    const target = join(folder, path.replace(/\.ts$/, ".js"));
    mkdirSync(dirname(target), { recursive: true });
    writeFileSync(target, outputText);
  }
  const shim = buildShim(folder);
  return {
    shim,
    run: (script, args, environment = {}) =>
      run(join(folder, "test", "checkpoint", "support", `${script}.js`), args, {
        LD_PRELOAD: preload(shim),
        // node-gyp-build looks here for the addon instead of beside the transpiled copy.
        LLAMAFORGE_PREBUILD: process.env.LLAMAFORGE_PREBUILD ?? root,
        ...environment,
      }),
    remove: () => rmSync(folder, { recursive: true, force: true }),
  };
}

/** Compiles the shim into a folder. @returns its file */
export function buildShim(folder: string): string {
  const shim = join(folder, "fault_shim.so");
  const source = join(root, "test", "checkpoint", "support", "fault_shim.c");
  execFileSync("cc", ["-shared", "-fPIC", "-O1", "-o", shim, source, "-ldl"]);
  return shim;
}

/** LD_PRELOAD with the shim at its end, because a sanitizer must come first. */
export function preload(shim: string): string {
  return [process.env.LD_PRELOAD, shim].filter(Boolean).join(":");
}

async function run(
  script: string,
  args: readonly (string | number)[],
  environment: Readonly<Record<string, string>>,
): Promise<ChildResult> {
  const child = spawn(process.execPath, [script, ...args.map(String)], {
    env: { ...process.env, NODE_OPTIONS: "", ...environment },
    stdio: ["ignore", "pipe", "pipe"],
  });
  let stdout = "";
  let stderr = "";
  child.stdout.on("data", (data: Buffer) => {
    stdout += data.toString();
  });
  child.stderr.on("data", (data: Buffer) => {
    stderr += data.toString();
  });
  return await new Promise((resolve, reject) => {
    child.on("error", reject);
    child.on("close", (code, signal) => {
      resolve({ code, signal, lines: stdout.split("\n").filter(Boolean), stderr });
    });
  });
}
