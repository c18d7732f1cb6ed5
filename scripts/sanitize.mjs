// Runs compute-sanitizer over every kernel: memcheck, racecheck, initcheck and synccheck on
// test/support/kernel-sweep.mjs. Each tensor is an allocation of its own, so that the tools see its
// end. Prints a table; exit code 1 if a tool found anything.
//
//   node scripts/sanitize.mjs [--tools memcheck,racecheck] [--parallel 1] [--limit 600] [--log FOLDER] [SWEEP...]
//
// SWEEPs are parts of kernel-sweep.mjs, and ranks_STRATEGY: a few steps of that strategy on ranks
// that share the GPU through NCCL. All run by default. ranks_STRATEGY runs under memcheck only,
// because the other tools would report NCCL's protocol, whose kernels wait for flags that peers
// write. --parallel: sweeps at a time, one process each. --limit: seconds for each sweep, after
// which it counts as not clean. Needs compute-sanitizer (CUDA toolkit).
//
// cuBLASLt's kernels run under it too. Hazards that racecheck reports between two of their
// instructions are counted separately, because racecheck does not understand an arrival of one lane
// for its whole warp. The attention kernels use such arrivals too; for them, build the plugin with
// CUDAFLAGS=-DLLAMAFORGE_RACECHECK (docs/cuda.md).
import { spawn } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const root = fileURLToPath(new URL("..", import.meta.url));
const program = join(root, "test/support/kernel-sweep.mjs");
const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    tools: { type: "string", default: "memcheck,racecheck,initcheck,synccheck" },
    parallel: { type: "string", default: "1" },
    limit: { type: "string", default: "600" },
    log: { type: "string" },
  },
});
for (const name of ["parallel", "limit"]) {
  if (!(Number(options[name]) >= 1)) {
    console.error(`--${name} ${options[name]}: expected a number from 1 on`);
    process.exit(2);
  }
}
const log = options.log ?? mkdtempSync(join(tmpdir(), "llamaforge-sanitize-"));
mkdirSync(log, { recursive: true });
const sanitizer =
  [process.env.CUDA_HOME, "/usr/local/cuda"]
    .filter(Boolean)
    .map((home) => join(home, "bin/compute-sanitizer"))
    .find(existsSync) ?? "compute-sanitizer";
/** Number of ranks for each strategy; hybrid_shard needs four. */
const runs = {
  ranks_replicated: 2,
  ranks_zero1: 2,
  ranks_full_shard: 2,
  ranks_hybrid_shard: 4,
};

const sweeps = positionals.length > 0 ? positionals : [...namesOfSweeps(), ...Object.keys(runs)];

/** The command of a sweep, and the output that shows that it has run. */
function programOf(sweep) {
  const ranks = runs[sweep];
  if (ranks === undefined) return { command: [program, sweep], done: /\d+ operations ran/ };
  const sweepFile = join(root, "test/support/ranks-sweep.mjs");
  const command = [sweepFile, sweep.slice("ranks_".length), String(ranks)];
  return { command, done: /ranks ran alike/ };
}

function namesOfSweeps() {
  const text = readFileSync(program, "utf8");
  const body = text.slice(text.indexOf("const sweeps = {"), text.indexOf("const called"));
  return [...body.matchAll(/^ {2}(\w+)\(\) \{$/gm)].map(([, name]) => name);
}

const flags = {
  memcheck: ["--leak-check", "no"],
  racecheck: ["--racecheck-report", "hazard", "--print-limit", "100000"],
  initcheck: [],
  synccheck: [],
};

/**
 * Number of hazards, if all of them were printed and none has an access in our code; otherwise 0.
 */
function foreignHazards(text, summary) {
  const reports = text.split(/^=+ Error: .*hazard detected/m).slice(1);
  const [, displayed, errors] =
    /(\d+) hazards displayed \((\d+) errors, 0 warnings\)/.exec(summary) ?? [];
  if (displayed !== errors || reports.length !== Number(errors)) return 0;
  const accesses = (report) => report.match(/^=+ +(?:Read|Write) Thread .*$/gm) ?? [];
  const foreign = (report) =>
    accesses(report).length === 2 && accesses(report).every((line) => !/llamaforge/.test(line));
  return reports.every(foreign) ? reports.length : 0;
}

/**
 * Number of calls that failed inside NCCL, if nothing else was reported; otherwise 0. NCCL asks for
 * kernels that were not built for this chip, and works without them.
 */
function foreignCalls(text, summaries) {
  const reports = text.split(/^=+ Program hit /m).slice(1);
  const errors = summaries.reduce((sum, said) => sum + Number.parseInt(said, 10), 0);
  const foreign = (report) =>
    /^cudaErrorNoKernelImageForDevice .* call to cudaFuncGetAttributes/.test(report) &&
    /in libnccl\.so/.test(report) &&
    !/llamaforge/.test(report);
  return errors === reports.length && reports.every(foreign) ? errors : 0;
}

const isClean = (summary) => /^0 (errors|hazards)/.test(summary);

/** Runs one tool over one sweep. */
async function check(tool, sweep) {
  const started = performance.now();
  const { command, done } = programOf(sweep);
  const child = spawn(
    sanitizer,
    [
      ...["--tool", tool, ...flags[tool], "--error-exitcode", "42", "--target-processes", "all"],
      ...[process.execPath, ...command],
    ],
    {
      detached: true, // a process group: killing the tool alone would leave its child
      env: {
        LLAMAFORGE_TEST_DEVICE: "cuda:0",
        ...process.env,
        LLAMAFORGE_CUDA_ALLOCATE_EACH: "1",
        LLAMAFORGE_GEMM: "first",
        ...(tool === "initcheck" ? { LLAMAFORGE_CUDA_FILL_PRODUCTS: "1" } : {}),
      },
    },
  );
  const timer = setTimeout(() => process.kill(-child.pid, "SIGKILL"), Number(options.limit) * 1000);
  let text = "";
  for (const stream of [child.stdout, child.stderr]) {
    stream.on("data", (data) => {
      text += data;
    });
  }
  const code = await new Promise((resolve) => {
    child.on("error", (error) => {
      text += error.message;
      resolve(1);
    });
    child.on("close", resolve);
  });
  clearTimeout(timer);
  writeFileSync(join(log, `${tool}-${sweep}.log`), text);
  const seconds = (performance.now() - started) / 1000;
  const missing = code === null ? `ended after ${seconds.toFixed(0)} s` : "no summary";
  // Each process has a summary of its own; the first one that is not clean counts.
  const summaries = [...text.matchAll(/(?:ERROR|RACECHECK) SUMMARY: (.*)/g)].map(
    ([, said]) => said,
  );
  const summary = summaries.find((said) => !isClean(said)) ?? summaries[0] ?? missing;
  const ran = done.test(text);
  const found =
    tool === "racecheck" ? foreignHazards(text, summary) : foreignCalls(text, summaries);
  const foreign = ran ? found : 0;
  const clean = ran && (foreign > 0 || (code === 0 && isClean(summary)));
  return {
    foreign,
    tool,
    sweep,
    clean,
    summary,
    code,
    seconds,
  };
}

const waiting = options.tools
  .split(",")
  .flatMap((tool) => sweeps.map((sweep) => ({ tool, sweep })))
  .filter(({ tool, sweep }) => tool === "memcheck" || !(sweep in runs));
const results = [];
async function work() {
  for (let next = waiting.shift(); next; next = waiting.shift()) {
    const result = await check(next.tool, next.sweep);
    results.push(result);
    const { tool, sweep, clean, summary, seconds } = result;
    console.log(`${tool} ${sweep}: ${clean ? "clean" : summary}, ${seconds.toFixed(0)} s`);
  }
}
await Promise.all(Array.from({ length: Number(options.parallel) }, work));

for (const tool of options.tools.split(",")) {
  const of = results.filter((result) => result.tool === tool);
  const seconds = of.reduce((sum, result) => sum + result.seconds, 0);
  const dirty = of.filter(({ clean }) => !clean);
  console.log(
    `${tool.padEnd(10)} ${of.length} sweeps, ${seconds.toFixed(0)} s: ${dirty.length === 0 ? "clean" : ""}`,
  );
  for (const { sweep, foreign } of of.filter((result) => result.foreign > 0)) {
    const what =
      tool === "racecheck" ? "hazards inside cuBLASLt's kernels" : "failed calls inside NCCL";
    console.log(`${" ".repeat(11)}${sweep}: ${foreign} ${what}`);
  }
  for (const { sweep, summary, code } of dirty) {
    console.log(
      `${" ".repeat(11)}${sweep}: ${summary} (exit code ${code}), ${join(log, `${tool}-${sweep}.log`)}`,
    );
  }
}
if (results.some(({ clean }) => !clean)) process.exitCode = 1;
