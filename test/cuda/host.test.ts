/**
 * The host side of the plugin without a GPU. Its sources are compiled with a stand-in for CUDA's
 * header (test/cuda/host) under the sanitizers, on any machine with the sources and a compiler.
 */
import { execFileSync, spawnSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { canCompileSources, compile, sanitized } from "../support/cpp.js";

const root = fileURLToPath(new URL("../..", import.meta.url));

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "llamaforge-host-"));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** Compiles a program of test/cuda/host with sources of csrc. */
function build(name: string, sources: readonly string[]): string {
  const files = sources.map((source) => `csrc/${source}.cpp`);
  const input = { sources: [`test/cuda/host/${name}.cpp`, ...files] };
  return compile(join(folder, name), input, [...sanitized, `-I${join(root, "test/cuda/host")}`]);
}

describe.runIf(canCompileSources)("the host side of a GPU's stream", () => {
  it("never holds up whoever submits, keeps order and failures, holds what copies write to, and ends on any thread", () => {
    const sources = [
      "cuda_stream",
      "cuda_recordings",
      "completion_queue",
      "arena",
      "pinned_pool",
      "cuda_error",
    ];
    const program = build("stream", [
      ...sources.map((name) => `cuda/runtime/${name}`),
      "runtime/tensor",
    ]);
    const { stdout, stderr } = spawnSync(program, { encoding: "utf8", timeout: 120_000 });
    expect(stdout + stderr).toBe("ok\n");
  }, 400_000);
});

describe.runIf(canCompileSources)("the file of chosen algorithms", () => {
  let program: string;
  beforeAll(() => {
    program = build("gemm_cache", ["cuda/gemm/gemm_cache"]);
  }, 200_000);

  /** The file that the program writes with only these variables set; null if it writes none. */
  function written(environment: Record<string, string>, candidates: readonly string[]) {
    const cwd = mkdtempSync(join(folder, "cwd-"));
    const output = execFileSync(program, { cwd, env: environment, encoding: "utf8" });
    const files = candidates.filter((path) => existsSync(path));
    expect(output).toBe(files.length > 0 ? "found\n" : "none\n");
    return files;
  }

  it.each([
    ["LLAMAFORGE_GEMM_CACHE", { LLAMAFORGE_GEMM_CACHE: "own.txt" }, "own.txt"],
    ["XDG_CACHE_HOME", { XDG_CACHE_HOME: "cache" }, "cache/llamaforge/gemm.txt"],
    ["HOME", {}, "home/.cache/llamaforge/gemm.txt"],
    [
      "HOME, where the others are empty",
      { LLAMAFORGE_GEMM_CACHE: "", XDG_CACHE_HOME: "" },
      "home/.cache/llamaforge/gemm.txt",
    ],
  ])("is named by %s", (_, given, expected) => {
    const base = mkdtempSync(join(folder, "base-"));
    const inBase = Object.entries({ HOME: "home", ...given }).map(([name, path]) => [
      name,
      path === "" ? "" : join(base, path),
    ]);
    const all = ["own.txt", "cache/llamaforge/gemm.txt", "home/.cache/llamaforge/gemm.txt"];
    const files = written(
      Object.fromEntries(inBase),
      all.map((path) => join(base, path)),
    );
    expect(files).toEqual([join(base, expected)]);
    expect(readFileSync(files[0] as string, "utf8")).toMatch(/^test: product\t[0-9a-f]{128}\n$/);
  });

  it("is nowhere with none, and where no variable says a place", () => {
    const base = mkdtempSync(join(folder, "base-"));
    mkdirSync(join(base, ".cache"));
    const places = [join(base, ".cache/llamaforge/gemm.txt"), "/llamaforge/gemm.txt"];
    expect(written({ HOME: base, LLAMAFORGE_GEMM_CACHE: "none" }, places)).toEqual([]);
    expect(written({ HOME: "", XDG_CACHE_HOME: "" }, places)).toEqual([]);
  });
});
