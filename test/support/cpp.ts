/** C++ that tests compile: parts of csrc by themselves, and libraries that stand for those of others. */
import { execFileSync, spawnSync } from "node:child_process";
import { existsSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("../..", import.meta.url));

export const hasCompiler = spawnSync("g++", ["--version"]).status === 0;
/** A GPU host that got the bundle may have a compiler, but has no sources. */
export const canCompileSources = hasCompiler && existsSync(join(root, "csrc/comm/frame.cpp"));

/**
 * Compiles with csrc among the include folders.
 * @param out the file to make
 * @param input.text C++ of the test's own
 * @param input.sources files, from the repository's root
 * @returns `out`
 */
export function compile(
  out: string,
  input: { text?: string; sources?: readonly string[] },
  flags: readonly string[] = [],
): string {
  const { text, sources = [] } = input;
  const files = sources.map((source) => join(root, source));
  // What follows -xc++ is taken for C++, whatever its name; the text comes on standard input.
  const own = text === undefined ? [] : ["-xc++", "-"];
  const args = ["-std=c++20", ...flags, `-I${join(root, "csrc")}`, "-o", out, ...files, ...own];
  execFileSync("g++", args, { input: text ?? "" });
  return out;
}

/**
 * A driver that only knows its version stands for NVIDIA's.
 * @returns the LD_LIBRARY_PATH with which it is found
 */
export function driverOfOurOwn(folder: string, version: number): string {
  const place = join(folder, `driver-${version}`);
  mkdirSync(place, { recursive: true });
  const text = `extern "C" int cuDriverGetVersion(int* v) { *v = ${version}; return 0; }`;
  compile(join(place, "libcuda.so.1"), { text }, ["-shared", "-fPIC"]);
  // In front of what is there already: the addon may need that.
  return [place, process.env.LD_LIBRARY_PATH].filter(Boolean).join(":");
}

/** Memory errors end the program, with a report. */
export const sanitized = ["-O0", "-fsanitize=address,undefined", "-pthread"] as const;
