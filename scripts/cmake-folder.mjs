// CMake build folders, and the sources that they were made for.
import { existsSync, readFileSync, realpathSync, rmSync } from "node:fs";
import { join, resolve } from "node:path";

/** The value of a variable in a folder's CMakeCache.txt; undefined if there is none. */
export function cached(folder, variable) {
  const file = join(folder, "CMakeCache.txt");
  if (!existsSync(file)) return undefined;
  const lines = readFileSync(file, "utf8").split("\n");
  const line = lines.find((each) => each.startsWith(`${variable}:`));
  return line?.slice(line.indexOf("=") + 1);
}

/**
 * Says why a build folder builds other sources than these, or builds into another folder. Such a
 * folder came along when a clone was copied or moved: its cache holds absolute paths of the original
 * place.
 * @returns null if the folder is for these sources, or not configured yet
 */
export function foreignTo(folder, source) {
  const expected = { CMAKE_HOME_DIRECTORY: source, CMAKE_CACHEFILE_DIR: folder };
  for (const [variable, place] of Object.entries(expected)) {
    const found = cached(folder, variable);
    if (found !== undefined && !samePlace(found, place))
      return `${variable} is ${found}, not ${place}`;
  }
  return null;
}

/** The entries that CMake and its builds leave in a folder. Other entries there are not ours. */
const made = [
  ...["CMakeCache.txt", "CMakeFiles", "cmake_install.cmake", "compile_commands.json"],
  ...["build.ninja", ".ninja_deps", ".ninja_log", "Makefile", "Release", "Debug"],
];

/**
 * Removes the output of a build for other sources. Nothing of it fits; CMake refuses it or, worse,
 * builds the other clone.
 * @returns whether anything was removed
 */
export function discardForeign(folder, source, say = console.log) {
  const why = foreignTo(folder, source);
  if (why === null) return false;
  say(`${folder} was made for another clone (${why}): it is configured anew`);
  for (const name of made) rmSync(join(folder, name), { recursive: true, force: true });
  return true;
}

function samePlace(a, b) {
  const real = (path) => {
    try {
      return realpathSync(path);
    } catch {
      return resolve(path);
    }
  };
  return real(a) === real(b);
}
