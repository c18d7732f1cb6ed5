// Packs everything that a GPU host without Node, npm or oneDNN needs into one folder,
// build/gpu-bundle:
//
//   npm run bundle:gpu            needs: npm run setup, npm run build:cuda
//   build/gpu-bundle/run.sh test [FILES]            the tests on the GPU
//   build/gpu-bundle/run.sh llamaforge doctor       the command line; likewise train, generate, ...
//   build/gpu-bundle/run.sh bench event-loop/run.mjs [OPTIONS]   a program of bench/
//   build/gpu-bundle/run.sh node FILE               any other program
//
// There are two archives: one for parts that seldom change (Node, npm packages, oneDNN), which is
// made again only after a change, and one for the project itself. Together they are at most 60 MiB.
// run.sh unpacks them once, next to itself or into LLAMAFORGE_BUNDLE_DIR.
import { execFileSync, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import {
  chmodSync,
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const bundle = join(root, "build/gpu-bundle");
const mostBytes = 60 * 2 ** 20;

function fail(message) {
  console.error(`bundle-gpu: ${message}`);
  process.exit(1);
}

const manifest = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));

/** Packages that the library and its tests need at run time, with all their dependencies. */
function packages() {
  const found = new Map();
  const add = (name, from, optional) => {
    let folder = from;
    while (!existsSync(join(folder, "node_modules", name, "package.json"))) {
      if (folder === root) {
        if (optional) return;
        fail(`the package ${name} is not installed. Run: npm install`);
      }
      folder = dirname(folder);
    }
    const path = join(folder, "node_modules", name);
    if (found.has(path)) return;
    const {
      version,
      dependencies = {},
      optionalDependencies = {},
    } = JSON.parse(readFileSync(join(path, "package.json"), "utf8"));
    found.set(path, version);
    for (const needed of Object.keys(dependencies))
      add(needed, path, needed in optionalDependencies);
    for (const needed of Object.keys(optionalDependencies)) add(needed, path, true);
  };
  for (const name of [...Object.keys(manifest.dependencies), "vitest", "fast-check", "fastify"])
    add(name, root, false);
  return found;
}

/**
 * Whether the bundle needs a file. Native code for other systems, types, sources and documentation
 * are left out.
 */
function isNeeded(path) {
  if (/\.(map|md|markdown|d\.[cm]?ts|flow)$/i.test(path)) return false;
  if (/[./-](android|darwin|win32|freebsd|openharmony|musl|arm|arm64|ia32|wasm32)[./-]/.test(path))
    return false;
  return true;
}

/** Shared libraries that the addon needs and a bare Linux lacks. */
function sharedLibraries(addon) {
  return execFileSync("ldd", [addon], { encoding: "utf8" })
    .split("\n")
    .map((line) => /(lib(?:dnnl|gomp|OpenCL)\.so\S*) => (\S+)/.exec(line))
    .filter(Boolean)
    .map(([, name, path]) => ({ name, path: realpathSync(path) }));
}

function pack(archive, folder) {
  const { status, stderr } = spawnSync(
    "tar",
    ["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "-cJf", archive, "-C", folder, "."],
    { encoding: "utf8", env: { ...process.env, XZ_OPT: "-6 -T0" } },
  );
  if (status !== 0) fail(`tar failed: ${stderr}`);
}

const addon = join(root, "build/Release/llamaforge.node");
const plugins = existsSync(addon)
  ? readdirSync(dirname(addon)).filter((name) => /^libllamaforge_cuda\d+\.so$/.test(name))
  : [];
if (plugins.length === 0)
  fail("addon or plugin are not built. Run: npm run setup && npm run build:cuda");
if (!existsSync(join(root, "dist/index.js"))) fail("dist/ is not built. Run: npm run build:ts");

mkdirSync(bundle, { recursive: true });
const staging = join(root, "build/gpu-bundle-staging");
rmSync(staging, { recursive: true, force: true });

// ---- parts that seldom change
const libraries = sharedLibraries(addon);
const found = packages();
const identity = createHash("sha256")
  .update(readFileSync(fileURLToPath(import.meta.url)))
  .update(JSON.stringify([process.version, [...found], libraries]))
  .digest("hex");
const stamp = join(root, "build/gpu-bundle-base");
const base = join(bundle, "base.tar.xz");
if (!existsSync(base) || !existsSync(stamp) || readFileSync(stamp, "utf8") !== identity) {
  const folder = join(staging, "base");
  mkdirSync(join(folder, "bin"), { recursive: true });
  mkdirSync(join(folder, "libraries"));
  cpSync(process.execPath, join(folder, "bin/node"), { dereference: true });
  spawnSync("strip", [join(folder, "bin/node")]);
  for (const { name, path } of libraries)
    cpSync(path, join(folder, "libraries", name), { dereference: true });
  for (const path of found.keys()) {
    cpSync(path, join(folder, path.slice(root.length)), {
      recursive: true,
      filter: (source) =>
        isNeeded(source.slice(path.length)) && !source.slice(path.length).includes("/node_modules"),
    });
  }
  pack(base, folder);
  writeFileSync(stamp, identity);
}

// ---- the project
const project = join(staging, "project");
mkdirSync(join(project, "build/Release"), { recursive: true });
const parts = [
  "dist",
  "lib",
  "test",
  "bench",
  "configs",
  "assets",
  "scripts",
  "csrc/ops",
  "package.json",
  "tsconfig.json",
];
for (const part of [...parts, "vitest.config.ts"]) {
  if (existsSync(join(root, part)))
    cpSync(join(root, part), join(project, part), { recursive: true });
}
for (const name of ["llamaforge.node", ...plugins]) {
  const target = join(project, "build/Release", name);
  cpSync(join(root, "build/Release", name), target);
  spawnSync("strip", ["--strip-debug", target]);
}
// The program of test/cuda/arena.test.ts, with sanitizers. It is compiled here because the other
// host has no compiler.
const arena = ["csrc/cuda/runtime/arena.cpp", "test/cuda/arena.cpp"].map((name) =>
  join(root, name),
);
const checks = ["-fsanitize=address,undefined", "-static-libasan", "-static-libubsan"];
mkdirSync(join(project, "build/test"), { recursive: true });
execFileSync("g++", [
  ...["-std=c++20", "-O1", "-s", ...checks, "-static-libstdc++", `-I${root}/csrc`],
  ...["-o", join(project, "build/test/arena"), ...arena],
]);
pack(join(bundle, "project.tar.xz"), project);

const id = createHash("sha256")
  .update(readFileSync(base))
  .update(readFileSync(join(bundle, "project.tar.xz")))
  .digest("hex")
  .slice(0, 16);
writeFileSync(
  join(bundle, "run.sh"),
  `#!/bin/sh
# Runs LlamaForge from this bundle. Made by scripts/bundle-gpu.mjs; usage is written there.
set -e
here=$(cd "$(dirname "$0")" && pwd)
folder="\${LLAMAFORGE_BUNDLE_DIR:-$here}/unpacked-${id}"
unpack() {
  if command -v xz >/dev/null; then tar -xJf "$1" -C "$2"
  else python3 -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2])' "$1" "$2"; fi
}
if [ ! -e "$folder/complete" ]; then
  mkdir -p "$folder"
  unpack "$here/base.tar.xz" "$folder"
  unpack "$here/project.tar.xz" "$folder"
  touch "$folder/complete"
fi
export PATH="$folder/bin:$PATH" LD_LIBRARY_PATH="$folder/libraries\${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export LLAMAFORGE_BUNDLE="$folder"
what="$1"
[ $# -gt 0 ] && shift
case "$what" in
  node) exec node "$@" ;;
  bench)
    [ -f "$folder/bench/$1" ] || { echo "$0: there is no bench/$1" >&2; exit 2; }
    file="$folder/bench/$1"
    shift
    exec node "$file" "$@" ;;
  llamaforge) exec node "$folder/dist/cli/main.js" "$@" ;;
  test)
    cd "$folder"
    export LLAMAFORGE_TEST_DEVICE="\${LLAMAFORGE_TEST_DEVICE:-cuda:0}"
    # Options alone leave the files as they are.
    files=no
    for argument in "$@"; do case "$argument" in -*) ;; *) files=yes ;; esac; done
    [ $files = yes ] || set -- "$@" ${manifest.scripts["test:gpu"].split("vitest run ")[1]}
    exec node node_modules/vitest/vitest.mjs run "$@" ;;
  *) echo "usage: $0 test [FILES] | llamaforge ARGUMENTS | bench FILE [OPTIONS] | node FILE" >&2; exit 2 ;;
esac
`,
);
chmodSync(join(bundle, "run.sh"), 0o755);
rmSync(staging, { recursive: true, force: true });

const sizes = readdirSync(bundle)
  .filter((name) => !name.startsWith("unpacked-"))
  .map((name) => [name, statSync(join(bundle, name)).size]);
const total = sizes.reduce((sum, [, size]) => sum + size, 0);
for (const [name, size] of sizes)
  console.log(`${name.padEnd(16)} ${(size / 2 ** 20).toFixed(1)} MiB`);
if (total > mostBytes)
  fail(`${(total / 2 ** 20).toFixed(1)} MiB are more than ${mostBytes / 2 ** 20}`);
