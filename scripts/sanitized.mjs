// Runs tests, or a program, with an addon built with the compiler's sanitizers in a build folder of
// its own:
//
//   npm run test:asan                          AddressSanitizer and UndefinedBehaviorSanitizer: `lists.address` below
//   npm run test:tsan                          ThreadSanitizer: `lists.thread` below
//   npm run test:asan -- test/ops              these tests
//   npm run test:asan -- --run scripts/fuzz.mjs --minutes 5      a program of Node instead of tests
//
// Reports of all processes, including children that were killed, are collected in
// build/<name>/reports; any report makes this program end with 1. All test files share one process,
// because starting a process takes long here.
//
// AddressSanitizer does not look for leaks. V8 frees nothing at its end, and every allocation of
// the addon has V8 on its stack, so no suppression could tell the two apart. Leaks show in memory()
// and in resident memory instead (a08-leaks).
//
// ThreadSanitizer runs with one thread per OpenMP team. libgomp is not instrumented, so
// ThreadSanitizer does not know its barriers and would report every parallel loop; with one thread
// the loops run in place. The tests cover everything that passes between JS threads, the streams'
// threads, and those of the store and the collectives. Other tests check by their bits that kernels
// do not race: the bits are equal for every number of threads (test/ops/threads.test.ts). Node is
// not instrumented either: accesses within it are not seen, but its locks are.
import { execFileSync, spawnSync } from "node:child_process";
import { mkdirSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { discardForeign } from "./cmake-folder.mjs";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const fault = (...names) => names.map((name) => `test/fault/${name}`);
const lists = {
  address: [
    ...fault("a0", "c01", "c06", "d07", "f0", "k04"),
    ...["test/core", "test/io", "test/ops", "test/optim", "test/model"],
  ],
  thread: [
    ...fault("a06", "a07", "a09", "c12", "k04"),
    ...["test/core", "test/dist/comm", "test/dist/exit", "test/io"],
  ],
};
const kinds = {
  address: {
    folder: "asan",
    sanitizers: "address,undefined",
    libraries: ["libasan.so", "libubsan.so"],
    options: {
      // V8 and the tests ask for more memory than there is, and accept a refusal. Freed memory is
      // quarantined up to 16 MB instead of 256, because tests of resident memory would notice more.
      ASAN_OPTIONS: "detect_leaks=0:allocator_may_return_null=1:quarantine_size_mb=16",
      UBSAN_OPTIONS: "halt_on_error=1:print_stacktrace=1",
    },
  },
  thread: {
    folder: "tsan",
    sanitizers: "thread",
    libraries: ["libtsan.so"],
    options: {
      // A process that ends through exit() or its watchdog waits only for threads that could touch
      // objects that are gone by then.
      TSAN_OPTIONS:
        "ignore_noninstrumented_modules=1:history_size=4:report_signal_unsafe=0:report_thread_leaks=0",
      LLAMAFORGE_THREADS: "1",
      OMP_NUM_THREADS: "1",
    },
  },
};

const [name, ...rest] = process.argv.slice(2);
const kind = kinds[name];
if (kind === undefined) {
  console.error(
    "usage: node scripts/sanitized.mjs address|thread [TESTS... | --run PROGRAM ARGS...]",
  );
  process.exit(2);
}
const build = join(root, "build", kind.folder);
const reports = join(build, "reports", String(process.pid));

function compile() {
  discardForeign(join(build, "build"), root);
  // node-gyp-build looks for build/Release under the folder that LLAMAFORGE_PREBUILD names.
  const args = ["build", "-O", join(build, "build"), "-l", "error"];
  args.push(`--CDLLAMAFORGE_SANITIZE=${kind.sanitizers}`, "--CDLLAMAFORGE_CPU_SETS=best");
  const made = spawnSync(join(root, "node_modules/.bin/cmake-js"), args, {
    cwd: root,
    stdio: "inherit",
  });
  if (made.status !== 0) process.exit(1);
}

/**
 * Libraries to load before the addon: the sanitizers' runtime, and libstdc++, where the runtime
 * looks for exception functions.
 */
function preloaded() {
  const path = (library) =>
    execFileSync("g++", [`-print-file-name=${library}`], { encoding: "utf8" }).trim();
  return [...kind.libraries, "libstdc++.so"].map(path).join(":");
}

function environment() {
  const options = Object.entries(kind.options).map(([variable, value]) => [
    variable,
    variable.endsWith("_OPTIONS") ? `${value}:log_path=${join(reports, "report")}` : value,
  ]);
  return {
    ...process.env,
    ...Object.fromEntries(options),
    LD_PRELOAD: preloaded(),
    LLAMAFORGE_PREBUILD: build,
  };
}

compile();
mkdirSync(reports, { recursive: true });
const program =
  rest[0] === "--run"
    ? rest.slice(1)
    : [
        ...[join(root, "node_modules/vitest/vitest.mjs"), "run"],
        ...["--no-isolate", "--testTimeout", "600000", "--hookTimeout", "600000"],
        ...(rest.length > 0 ? rest : lists[name]),
      ];
const { status } = spawnSync(process.execPath, program, {
  cwd: root,
  env: environment(),
  stdio: "inherit",
});
// A refused request for memory also leaves a file, but one without an error.
const found = readdirSync(reports)
  .map((file) => readFileSync(join(reports, file), "utf8"))
  .filter((text) => /ERROR: |runtime error: |WARNING: ThreadSanitizer/.test(text));
for (const text of found) console.error(text);
console.log(`${name}: ${found.length} reports`);
process.exitCode = found.length > 0 ? 1 : (status ?? 1);
