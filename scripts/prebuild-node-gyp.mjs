#!/usr/bin/env node
// prebuildify starts this program instead of node-gyp, in the package folder that
// scripts/prebuild.mjs prepares. The program puts the addon that CMake built, and its plugins for
// the CPU, into build/Release, where prebuildify picks them up and strips them. Every library that
// a bare system lacks goes into build/artifacts. node-gyp itself would empty the repository's build
// folder and download headers that CMake does not need.
import { execFileSync } from "node:child_process";
import { copyFileSync, mkdirSync, readdirSync, realpathSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

/** Libraries that every Linux with Node has. */
const systemLibraries = /^(linux-vdso|ld-linux.*|lib(c|m|dl|rt|pthread|stdc\+\+|gcc_s))\.so/;

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const built = join(root, "build/Release");
const target = join(process.cwd(), "build/Release");
const artifacts = join(process.cwd(), "build/artifacts");

/** Libraries that a file needs, directly or indirectly, by name. */
function libraries(file) {
  const found = new Map();
  for (const line of execFileSync("ldd", [file], { encoding: "utf8" }).split("\n")) {
    const [, name, path] = /^\s*(\S+) => (.*?)(?: \(0x[0-9a-f]+\))?$/.exec(line) ?? [];
    if (name === undefined || systemLibraries.test(name)) continue;
    if (!path.startsWith("/")) throw new Error(`${file} needs ${name}, which is not installed`);
    found.set(name, realpathSync(path));
  }
  return found;
}

for (const folder of [target, artifacts]) mkdirSync(folder, { recursive: true });
const own = readdirSync(built).filter(
  (name) => name === "llamaforge.node" || /^libllamaforge_(?!cuda).*\.so$/.test(name),
);
const origins = {};
for (const name of own) {
  copyFileSync(join(built, name), join(target, name));
  for (const [library, path] of libraries(join(built, name))) {
    copyFileSync(path, join(artifacts, library));
    origins[library] = path;
  }
}
// scripts/prebuild.mjs finds the licences by these paths.
writeFileSync(join(process.cwd(), "build/origins.json"), JSON.stringify(origins));
