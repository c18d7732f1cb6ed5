// A copied or moved clone contains its build folder, and CMake's cache there names the old place.
import { spawnSync } from "node:child_process";
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";

// A script has no types.
const script = new URL("../../scripts/cmake-folder.mjs", import.meta.url).href;
const { cached, discardForeign, foreignTo } = await import(script);

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "clone-"));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const configure = (clone: string) =>
  spawnSync("cmake", ["-S", clone, "-B", join(clone, "build")], { encoding: "utf8" });

/** A project that CMake configures without a compiler. */
function clone(): string {
  const path = join(folder, "clone");
  mkdirSync(path);
  const project =
    "cmake_minimum_required(VERSION 3.16)\nproject(tiny NONE)\nset(KEPT 1 CACHE STRING x)\n";
  writeFileSync(join(path, "CMakeLists.txt"), project);
  expect(configure(path).status).toBe(0);
  return path;
}

test("the folder of its own clone is left alone", () => {
  const own = clone();
  expect(foreignTo(join(own, "build"), own)).toBeNull();
  expect(discardForeign(join(own, "build"), own)).toBe(false);
  expect(cached(join(own, "build"), "KEPT")).toBe("1");
  expect(foreignTo(join(folder, "nothing"), own)).toBeNull();
});

test.each(["copied", "moved"])("that of a clone which was %s is configured anew", (how) => {
  const old = clone();
  const now = join(folder, "now");
  cpSync(old, now, { recursive: true });
  if (how === "moved") rmSync(old, { recursive: true });
  const build = join(now, "build");
  mkdirSync(join(build, "fuzz/found"), { recursive: true });
  // CMake alone refuses such a folder or continues with the sources of the old clone.
  expect(configure(now).status).not.toBe(0);
  const said: string[] = [];
  expect(discardForeign(build, now, (message: string) => said.push(message))).toBe(true);
  expect(said.join()).toContain(old);
  expect(configure(now).status).toBe(0);
  expect(readFileSync(join(build, "CMakeCache.txt"), "utf8")).not.toContain(`${old}/`);
  expect(existsSync(join(build, "fuzz/found"))).toBe(true);
});

test.each(["setup.mjs", "build-cuda.mjs", "sanitized.mjs", "prebuild.mjs"])(
  "%s looks at its build folder before it builds",
  (script) => {
    const text = readFileSync(new URL(`../../scripts/${script}`, import.meta.url), "utf8");
    const looked = text.indexOf("discardForeign(");
    expect(looked).toBeGreaterThan(0);
  },
);
