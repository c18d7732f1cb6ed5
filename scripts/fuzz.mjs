// Fuzzes every parser of files that may come from elsewhere, one after the other.
//
//   npm run fuzz                                    a minute each
//   npm run fuzz -- --minutes 5                     as in docs/faults.md
//   npm run fuzz -- --only safetensors,tokenizer    some of them; --seed N for other inputs
//
// The safetensors parser and the store's protocol run under libFuzzer with AddressSanitizer and
// UndefinedBehaviorSanitizer, which need clang (npm run setup -- --fuzz). The others run under
// fast-check, over changes to good files and to the committed corpus. To run those with an addon
// built with sanitizers, use `npm run test:asan -- --run scripts/fuzz.mjs --minutes 5`. A finding
// is written to build/fuzz/found and ends the run with 1; add it to the corpus when it is fixed.
import { spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import fc from "fast-check";
import { apply, edits } from "../test/fault/fuzz/mutations.mjs";
import { corpusOf, expectPromise, makeTargets } from "../test/fault/fuzz/targets.mjs";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const { values } = parseArgs({
  options: {
    minutes: { type: "string", default: "1" },
    seed: { type: "string", default: "1" },
    only: { type: "string" },
  },
});
const seconds = Number(values.minutes) * 60;
const chosen = values.only?.split(",");
if (!(seconds > 0) || !Number.isSafeInteger(Number(values.seed))) {
  console.error(
    `--minutes ${values.minutes} --seed ${values.seed}: expected a time above 0, and a whole number`,
  );
  process.exit(2);
}
const wanted = (name) => chosen === undefined || chosen.includes(name);
const build = join(root, "build", "fuzz");
const found = join(build, "found");
mkdirSync(found, { recursive: true });
const findings = [];

function report(name, executions, finding) {
  console.log(
    `${name.padEnd(15)} ${String(executions).padStart(9)} inputs  ${finding ?? "no finding"}`,
  );
  if (finding !== undefined) findings.push(name);
}

/** Parsers in C++: their sources besides csrc/fuzz/NAME_fuzz.cpp, and their longest input. */
const native = {
  safetensors: {
    sources: ["safetensors", "safetensors_header", "header_text", "regular_file", "file_error"].map(
      (name) => `csrc/io/${name}.cpp`,
    ),
    longest: 4096,
  },
  store: {
    sources: ["frame", "status", "store_server", "store_client"].map(
      (name) => `csrc/comm/${name}.cpp`,
    ),
    longest: 1024,
  },
};

function libFuzzer(name, { sources, longest }) {
  const clang = ["clang++", "clang++-14", "clang++-16", "clang++-19"].find(
    (program) => spawnSync(program, ["--version"]).status === 0,
  );
  if (clang === undefined) throw new Error("clang is missing: npm run setup -- --fuzz");
  const program = join(build, `${name}_fuzz`);
  const flags = ["-std=c++20", "-g", "-O1", "-pthread", "-fsanitize=fuzzer,address,undefined"];
  flags.push("-fno-sanitize-recover=all", "-DLF_LIBFUZZER", "-Icsrc");
  const args = [...flags, `csrc/fuzz/${name}_fuzz.cpp`, ...sources, "-o", program];
  const compiled = spawnSync(clang, args, { cwd: root, encoding: "utf8" });
  if (compiled.status !== 0) throw new Error(compiled.stderr);
  const corpus = join(build, `${name}_corpus`);
  mkdirSync(corpus, { recursive: true });
  const { status, stderr } = spawnSync(
    program,
    [
      `-max_total_time=${seconds}`,
      `-seed=${values.seed}`,
      `-max_len=${longest}`,
      "-timeout=20",
      "-rss_limit_mb=1024",
      "-print_final_stats=1",
      `-artifact_prefix=${found}/${name}-`,
      corpus,
      join(root, "csrc", "fuzz", `${name}_corpus`),
    ],
    { encoding: "utf8", maxBuffer: 2 ** 28 },
  );
  const executions = /number_of_executed_units: (\d+)/.exec(stderr)?.[1] ?? "?";
  report(name, executions, status === 0 ? undefined : stderr.slice(-3000));
}

async function fastCheck(name, target) {
  const files = [...target.seeds, ...corpusOf(root, name)];
  for (const file of files) await expectPromise(target, file);
  const property = fc.asyncProperty(fc.nat(files.length - 1), edits, async (index, list) => {
    executions++;
    await expectPromise(target, apply(files[index], list));
  });
  let executions = files.length;
  const end = performance.now() + seconds * 1000;
  for (let round = 0; performance.now() < end; round++) {
    const seed = Number(values.seed) * 1_000_003 + round;
    const result = await fc.check(property, { numRuns: 200, seed });
    if (!result.failed) continue;
    const [index, list] = result.counterexample;
    const path = join(found, `${name}-${seed}`);
    writeFileSync(path, apply(files[index], list));
    return report(name, executions, `${path}: ${result.errorInstance?.stack ?? result.error}`);
  }
  report(name, executions);
}

// Native code may print and abort. The scratch folder is in memory, because the disk is not under
// test.
const scratch = mkdtempSync("/dev/shm/llamaforge-fuzz-");
try {
  const targets = await makeTargets(root, scratch);
  const names = [...Object.keys(native), ...Object.keys(targets)];
  const unknown = (chosen ?? []).filter((name) => !names.includes(name));
  if (unknown.length > 0) throw new Error(`no parser ${unknown}: there are ${names.join(", ")}`);
  for (const [name, target] of Object.entries(native)) if (wanted(name)) libFuzzer(name, target);
  for (const [name, target] of Object.entries(targets)) {
    if (wanted(name)) await fastCheck(name, target);
  }
} finally {
  rmSync(scratch, { recursive: true, force: true });
}
process.exitCode = findings.length === 0 ? 0 : 1;
