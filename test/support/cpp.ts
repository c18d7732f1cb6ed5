/** C++ that tests compile: separate parts of csrc, and fake versions of foreign libraries. */
import { execFileSync, spawnSync } from "node:child_process";
import { existsSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("../..", import.meta.url));

export const hasCompiler = spawnSync("g++", ["--version"]).status === 0;
/** A GPU host with the bundle may have a compiler, but has no sources. */
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
  // Everything after -xc++ counts as C++, whatever its name. The text comes on standard input.
  const own = text === undefined ? [] : ["-xc++", "-"];
  const args = ["-std=c++20", ...flags, `-I${join(root, "csrc")}`, "-o", out, ...files, ...own];
  execFileSync("g++", args, { input: text ?? "" });
  return out;
}

/**
 * Compiles a fake driver that only knows its version and replaces NVIDIA's.
 * @returns the LD_LIBRARY_PATH that finds it
 */
export function driverOfOurOwn(folder: string, version: number): string {
  const place = join(folder, `driver-${version}`);
  mkdirSync(place, { recursive: true });
  const text = `extern "C" int cuDriverGetVersion(int* v) { *v = ${version}; return 0; }`;
  compile(join(place, "libcuda.so.1"), { text }, ["-shared", "-fPIC"]);
  // The folder comes before the existing path, which the addon may need.
  return [place, process.env.LD_LIBRARY_PATH].filter(Boolean).join(":");
}

/** With these flags memory errors end the program with a report. */
export const sanitized = ["-O0", "-fsanitize=address,undefined", "-pthread"] as const;
