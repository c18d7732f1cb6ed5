import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, it } from "vitest";

const root = fileURLToPath(new URL("../..", import.meta.url));
const hasCompiler = spawnSync("g++", ["--version"]).status === 0;

// The arena knows no CUDA, so this runs anywhere, under the sanitizers.
it.runIf(hasCompiler)(
  "device memory: blocks never overlap, join again and go back whole",
  () => {
    const folder = mkdtempSync(join(tmpdir(), "llamaforge-arena-"));
    try {
      const program = join(folder, "arena");
      const sources = ["csrc/cuda/arena.cpp", "test/cuda/arena.cpp"].map((name) =>
        join(root, name),
      );
      const flags = ["-std=c++20", "-O1", "-g", "-fsanitize=address,undefined", `-I${root}/csrc`];
      execFileSync("g++", [...flags, "-o", program, ...sources]);
      expect(execFileSync(program, { encoding: "utf8" })).toBe("ok\n");
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  },
  120_000,
);
