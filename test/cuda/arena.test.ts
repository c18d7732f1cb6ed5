import { execFileSync } from "node:child_process";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, it } from "vitest";

const root = fileURLToPath(new URL("../..", import.meta.url));
/** The program in the bundle for GPU hosts, which have neither sources nor a compiler. */
const built = join(root, "build/test/arena");

/** Runs a program and returns what it prints. */
function output(program: string): string {
  return execFileSync(program, { encoding: "utf8" });
}

// The arena does not depend on CUDA, so the test runs on any machine, under the sanitizers.
it("device memory: blocks never overlap, join again and go back whole", () => {
  if (!existsSync(join(root, "csrc/cuda/runtime/arena.cpp"))) {
    expect(output(built)).toBe("ok\n");
    return;
  }
  const folder = mkdtempSync(join(tmpdir(), "llamaforge-arena-"));
  try {
    const program = join(folder, "arena");
    const sources = ["csrc/cuda/runtime/arena.cpp", "test/cuda/arena.cpp"].map((name) =>
      join(root, name),
    );
    const flags = ["-std=c++20", "-O1", "-g", "-fsanitize=address,undefined", `-I${root}/csrc`];
    execFileSync("g++", [...flags, "-o", program, ...sources]);
    expect(output(program)).toBe("ok\n");
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}, 120_000);
