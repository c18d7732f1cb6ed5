// Builds the addon for linux-arm64 on Linux x64, into build/arm64/Release:
//
//   node scripts/build-arm64.mjs            downloads what is missing, compiles what changed
//   node scripts/build-arm64.mjs --pack     and makes the package of both systems
//
// The compiler is Debian's g++-aarch64-linux-gnu. Debian 12's arm64 packages of Gloo and of the
// libraries that the addon needs are unpacked into build/arm64/root, without touching the system.
// The compiler brings the C library that the addon is linked with, so packages are made on Debian
// 12: its glibc is the oldest that they support. scripts/test-arm64.mjs runs the result.
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, rmSync, writeFileSync } from "node:fs";
import { availableParallelism, totalmem } from "node:os";
import { basename, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { discardForeign } from "./cmake-folder.mjs";
import { downloadPackages } from "./debian-packages.mjs";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const folder = join(root, "build/arm64");
const apt = join(folder, "apt");
const unpacked = join(folder, "root");
const compiled = join(folder, "cmake");

/** Packages that the compilation needs, and then those of tests under qemu. */
const packages = [
  ...["libgloo-dev", "nlohmann-json3-dev"],
  ...["libgloo0", "libhiredis0.14", "libibverbs1", "libnl-3-200", "libnl-route-3-200", "libgomp1"],
  ...["libc6", "libgcc-s1", "libstdc++6", "gcc-12-base"],
];

function fail(message) {
  console.error(`build-arm64: ${message}`);
  process.exit(1);
}

function run(what, command, args, { cwd = folder, stdio = "pipe" } = {}) {
  console.log(`build-arm64: ${what} ...`);
  const { status, error, stdout, stderr } = spawnSync(command, args, {
    cwd,
    stdio,
    encoding: "utf8",
  });
  if (status === 0) return stdout;
  process.stderr.write(`${stdout ?? ""}${stderr ?? ""}`);
  fail(`${what} failed${error ? `: ${error.message}` : ""}: ${[command, ...args].join(" ")}`);
}

/** Unpacks Debian's arm64 packages into build/arm64/root. */
function fetchLibraries() {
  const complete = join(unpacked, "owners.json");
  if (existsSync(complete)) return;
  const release = { suite: "bookworm", components: "main", architecture: "arm64", size: "5 MB" };
  const debs = downloadPackages(apt, packages, release, (what, command, args, cwd) =>
    run(what, command, args, { cwd }),
  );
  rmSync(unpacked, { recursive: true, force: true });
  mkdirSync(unpacked, { recursive: true });
  // scripts/prebuild-systems.mjs finds the licence of a library by its package.
  const owners = {};
  for (const deb of debs) {
    const name = basename(deb);
    run(`unpacks ${name}`, "dpkg-deb", ["-x", deb, unpacked]);
    const list = run("lists its files", "sh", [
      "-c",
      'dpkg-deb --fsys-tarfile "$1" | tar -t',
      "sh",
      deb,
    ]);
    for (const path of list.split("\n")) owners[path.replace(/^\./, "")] = name.split("_")[0];
  }
  writeFileSync(complete, `${JSON.stringify(owners)}\n`);
  rmSync(apt, { recursive: true, force: true });
}

function compile() {
  discardForeign(compiled, root);
  const modules = join(root, "node_modules");
  const headers = ["node-api-headers/include", "node-addon-api"].map((part) => join(modules, part));
  const settings = {
    CMAKE_TOOLCHAIN_FILE: join(root, "scripts/arm64.cmake"),
    LLAMAFORGE_ARM64_ROOT: unpacked,
    CMAKE_BUILD_TYPE: "Release",
    CMAKE_LIBRARY_OUTPUT_DIRECTORY: join(folder, "Release"),
    CMAKE_BUILD_WITH_INSTALL_RPATH: "ON",
    CMAKE_CXX_FLAGS: "-DBUILDING_NODE_EXTENSION",
    CMAKE_JS_INC: headers.join(";"),
  };
  const args = Object.entries(settings).map(([name, value]) => `-D${name}=${value}`);
  run("configures", "cmake", ["-S", root, "-B", compiled, ...args]);
  const jobs = Math.max(1, Math.min(availableParallelism(), Math.floor(totalmem() / 2 ** 30)));
  const parallel = ["--parallel", process.env.CMAKE_BUILD_PARALLEL_LEVEL ?? String(jobs)];
  run("compiles what changed (4 minutes on two cores at first)", "cmake", [
    "--build",
    compiled,
    ...parallel,
  ]);
}

const compiler = "aarch64-linux-gnu-g++";
if (spawnSync(compiler, ["--version"], { stdio: "ignore" }).status !== 0)
  fail(`${compiler} is missing. On Debian: apt-get install g++-aarch64-linux-gnu`);
mkdirSync(folder, { recursive: true });
fetchLibraries();
compile();
console.log(`build-arm64: ${join(folder, "Release/llamaforge.node")}`);
if (process.argv.includes("--pack")) {
  const args = ["scripts/prebuild.mjs", "--cpu-only"];
  run("packs", process.execPath, args, { cwd: root, stdio: "inherit" });
}
