#!/usr/bin/env node
// prebuildify starts this program instead of node-gyp, in the package folder that
// scripts/prebuild.mjs prepares. The program puts the addon that CMake built, and its plugins for
// the CPU, into build/Release, where prebuildify picks them up and strips them. Every library that
// a bare system lacks goes into build/artifacts. node-gyp itself would empty the repository's build
// folder and download headers that CMake does not need.
import { copyFileSync, mkdirSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { systems } from "./prebuild-systems.mjs";

const { PREBUILD_PLATFORM, PREBUILD_ARCH } = process.env;
const { built, needed } = systems[`${PREBUILD_PLATFORM}-${PREBUILD_ARCH}`];
const target = join(process.cwd(), "build/Release");
const artifacts = join(process.cwd(), "build/artifacts");

for (const folder of [target, artifacts]) mkdirSync(folder, { recursive: true });
const own = readdirSync(built).filter(
  (name) => name === "llamaforge.node" || /^libllamaforge_(?!cuda).*\.so$/.test(name),
);
const origins = {};
for (const name of own) {
  copyFileSync(join(built, name), join(target, name));
  for (const [library, path] of needed(join(built, name))) {
    copyFileSync(path, join(artifacts, library));
    origins[library] = path;
  }
}
// scripts/prebuild.mjs finds the licences by these paths.
writeFileSync(join(process.cwd(), "build/origins.json"), JSON.stringify(origins));
