// Makes a fresh clone ready: system packages, npm packages, the native addon, the compiled TypeScript.
//
//   node scripts/setup.mjs            for the quickstart and the command line
//   node scripts/setup.mjs --tests    also what only the tests need (a browser)
//   node scripts/setup.mjs --cuda     also compiles the CUDA plugin, if nvcc is installed
//   node scripts/setup.mjs --fuzz     also what only the fuzzers need (clang)
//
// Parts that are already there are left alone, so a second run takes a few seconds. Missing Debian
// packages are installed if the script has the rights (root, or sudo without a password). Otherwise
// it prints the exact command to run, and ends.
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { availableParallelism, totalmem } from "node:os";
import { dirname } from "node:path";
import { fileURLToPath } from "node:url";
import { cached, discardForeign } from "./cmake-folder.mjs";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const forTests = process.argv.includes("--tests");
const forCuda = process.argv.includes("--cuda");
const forFuzzing = process.argv.includes("--fuzz");

function works(command, ...args) {
  return spawnSync(command, args, { stdio: "ignore" }).status === 0;
}

/** Runs a command. @param usual how long it usually takes, for a user who watches it run */
function run(what, usual, command, ...args) {
  const started = performance.now();
  console.log(`setup: ${what} (usually ${usual}) ...`);
  const { status, error, stdout, stderr } = spawnSync(command, args, {
    cwd: root,
    encoding: "utf8",
  });
  if (status !== 0) {
    process.stderr.write(`${stdout ?? ""}${stderr ?? ""}`);
    console.error(
      `setup: ${what} failed${error ? `: ${error.message}` : ""}: ${[command, ...args].join(" ")}`,
    );
    process.exit(1);
  }
  const seconds = ((performance.now() - started) / 1000).toFixed(1);
  console.log(`setup:   done in ${seconds} s`);
}

/** Debian packages, and how to tell that each is already present. */
const packages = [
  { name: "g++", present: () => works("g++", "--version") },
  { name: "make", present: () => works("make", "--version") || works("ninja", "--version") },
  { name: "cmake", present: () => works("cmake", "--version") },
  // Only kernels for x86-64 call oneDNN.
  ...(process.arch === "x64"
    ? [{ name: "libdnnl-dev", present: () => compiles("#include <dnnl.hpp>\n") }]
    : []),
  { name: "nlohmann-json3-dev", present: () => compiles("#include <nlohmann/json_fwd.hpp>\n") },
  { name: "libgloo-dev", present: () => compiles("#include <gloo/config.h>\n") },
  ...(forTests
    ? [
        {
          name: "chromium",
          present: () => existsSync("/usr/bin/chromium") || works("chromium", "--version"),
        },
        { name: "iproute2", present: () => works("ip", "-V") },
      ]
    : []),
  ...(forFuzzing
    ? [
        { name: "clang", present: () => works("clang++", "--version") },
        { name: "libclang-rt-dev", present: () => hasFuzzer() },
      ]
    : []),
];

function hasFuzzer() {
  const args = ["-fsanitize=fuzzer,address", "-x", "c++", "-", "-o", "/dev/null"];
  const input = 'extern "C" int LLVMFuzzerTestOneInput(const char*, unsigned long) { return 0; }\n';
  return spawnSync("clang++", args, { input, stdio: ["pipe", "ignore", "ignore"] }).status === 0;
}

function compiles(source) {
  const { status } = spawnSync("g++", ["-std=c++20", "-fsyntax-only", "-x", "c++", "-"], {
    input: source,
    stdio: ["pipe", "ignore", "ignore"],
  });
  return status === 0;
}

function installPackages() {
  const missing = packages.filter(({ present }) => !present()).map(({ name }) => name);
  if (missing.length === 0) return;
  const command = `apt-get install -y ${missing.join(" ")}`;
  const asRoot = process.getuid?.() === 0;
  if (!works("apt-get", "--version")) {
    console.error(
      `setup: missing: ${missing.join(", ")} (names of Debian's packages). Install them with this system's package manager, then run this again.`,
    );
    process.exit(1);
  }
  if (!asRoot && !works("sudo", "-n", "true")) {
    console.error(
      `setup: missing: ${missing.join(", ")}. Run this, then start again:\n  sudo ${command}`,
    );
    process.exit(1);
  }
  const prefix = asRoot ? [] : ["sudo", "-n"];
  const apt = (...args) => [
    ...prefix,
    "env",
    "DEBIAN_FRONTEND=noninteractive",
    "apt-get",
    "-qq",
    ...args,
  ];
  run("reading the list of Debian's packages", "10 s", ...apt("update"));
  run(
    `installing ${missing.join(", ")}`,
    "a minute",
    ...apt("install", "-y", "--no-install-recommends", ...missing),
  );
}

/**
 * Builds the changed parts. A first build for the quickstart makes only the CPU kernels of this
 * machine, which halves its time. The tests compare the instruction sets, so they need all kernels.
 */
function buildAddon() {
  // One compiler needs up to 1 GB, so the number of jobs is bounded by memory too.
  const jobs = Math.max(1, Math.min(availableParallelism(), Math.floor(totalmem() / 2 ** 30)));
  process.env.CMAKE_BUILD_PARALLEL_LEVEL ??= String(jobs);
  const folder = `${root}/build`;
  discardForeign(folder, root, (message) => console.log(`setup: ${message}`));
  const configured = cached(folder, "LLAMAFORGE_CPU_SETS");
  const sets = forTests ? "all" : "best";
  if (configured !== "all" && configured !== sets) {
    run(
      `configuring for ${sets} CPU kernels`,
      "10 s",
      tool("cmake-js"),
      "configure",
      `--CDLLAMAFORGE_CPU_SETS:STRING=${sets}`,
    );
  }
  const first = !existsSync(`${folder}/Release/llamaforge.node`);
  const usual = first
    ? sets === "all"
      ? "4 minutes on two cores"
      : "2 minutes on two cores"
    : "seconds";
  run("compiling what changed of the native addon", usual, tool("cmake-js"), "build");
}

if (process.platform !== "linux" || !["x64", "arm64"].includes(process.arch)) {
  console.error(
    `setup: LlamaForge runs on Linux with glibc, on x86-64 and ARM64, also in a container or under WSL 2; this is ${process.platform} on ${process.arch}.`,
  );
  process.exit(1);
}
installPackages();
const tool = (name) => `${root}/node_modules/.bin/${name}`;
if (!existsSync(tool("tsc"))) {
  console.error("setup: the npm packages are missing. Run: npm install");
  process.exit(1);
}
buildAddon();
run(
  "writing the types of the native functions",
  "1 s",
  process.execPath,
  "scripts/generate-ops.mjs",
);
run("compiling TypeScript", "10 s", tool("tsc"), "-p", "tsconfig.build.json");
// Compiling the plugin takes minutes, so a fresh clone does without it (npm run build:cuda).
// The long tests compile the plugin, which takes minutes, if nvcc is installed.
if (forCuda) {
  const args = ["scripts/build-cuda.mjs", "--if-available", "--archs", "80;90a"];
  run(
    "compiling the CUDA plugin, where nvcc is installed",
    "20 minutes",
    process.execPath,
    ...args,
  );
}
