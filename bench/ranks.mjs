// Trains the quickstart with 1, 2 and 4 ranks and each strategy on this machine's CPU. It compares
// the losses, and the bytes that a rank holds and sends.
//
//   npm start                                         once: it prepares the quickstart's data
//   node bench/ranks.mjs [--steps 40] [--precision fp32] [--out FILE]
//
// A step is 8 windows of 256 tokens for any number of ranks, so all runs have the same data. The
// schedule is the recipe's, of 500 steps. Exit code 1 if losses differ by more than 2e-5 (fp32) or
// 2e-3 (bf16) from those of one rank.
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { buildInfo } from "../dist/index.js";

const { values: options } = parseArgs({
  options: {
    steps: { type: "string", default: "40" },
    precision: { type: "string", default: "fp32" },
    out: { type: "string" },
  },
});
const root = fileURLToPath(new URL("..", import.meta.url));
const cli = join(root, "dist/cli/main.js");
const steps = Number(options.steps);
const bound = options.precision === "fp32" ? 2e-5 : 2e-3;
const folder = mkdtempSync(join(tmpdir(), "llamaforge-ranks-"));

/** Trains, and reads the files that the run left. */
function train(ranks, parallel, shardSize) {
  const out = join(folder, `${parallel}-${ranks}`);
  const settings = {
    out,
    steps,
    precision: options.precision,
    parallel,
    "batch.microBatch": 8 / ranks,
    "optimizer.decaySteps": 500,
    "checkpoint.every": 0,
    "evaluate.every": 0,
    "evaluate.batches": 1,
    "sample.every": 0,
    "sample.prompts": "[]",
    ...(shardSize && { "distributed.shardSize": shardSize }),
  };
  const set = Object.entries(settings).flatMap(([path, value]) => ["--set", `${path}=${value}`]);
  const command = ["train", join(root, "configs/quickstart.yaml"), ...set];
  const launched = ranks === 1 ? command : ["launch", "--nproc", `${ranks}`, "--", ...command];
  const { status, stderr } = spawnSync(process.execPath, [cli, ...launched], {
    cwd: root,
    encoding: "utf8",
  });
  if (status !== 0) throw new Error(`${ranks} ranks, ${parallel}: ended with ${status}\n${stderr}`);
  const lines = readFileSync(join(out, "metrics.jsonl"), "utf8").trim().split("\n");
  const metrics = lines.map((line) => JSON.parse(line));
  const ownLog = (rank) => readFileSync(join(out, "logs", `rank-${rank}.log`), "utf8");
  const sent = (rank) => Number(/sent (\d+) bytes/.exec(ownLog(rank))?.[1]);
  return {
    ranks,
    parallel,
    losses: metrics.map(({ loss }) => loss),
    heldBytes: metrics.at(-1).deviceBytes,
    sentBytes:
      ranks === 1 ? 0 : Math.max(...Array.from({ length: ranks }, (_, rank) => sent(rank))),
  };
}

const cases = [
  [1, "replicated"],
  ...[2, 4].flatMap((ranks) =>
    ["replicated", "zero1", "full_shard"].map((parallel) => [ranks, parallel]),
  ),
  [4, "hybrid_shard", 2],
];
const results = [];
try {
  for (const each of cases) {
    results.push(train(...each));
    process.stderr.write(`${each.join(" ")}\n`);
  }
} finally {
  rmSync(folder, { recursive: true, force: true });
}

const [alone] = results;
const shown = [1, Math.ceil(steps / 2), steps];
const rows = results.map((run) => {
  const differences = run.losses.map((loss, i) => Math.abs(loss / alone.losses[i] - 1));
  run.largestDifference = Math.max(...differences);
  return [
    `${run.ranks} ${run.parallel}`,
    ...shown.map((step) => run.losses[step - 1].toFixed(6)),
    run === alone ? "" : run.largestDifference.toExponential(1),
    `${(run.heldBytes / 1e6).toFixed(1)} MB`,
    `${(run.sentBytes / 1e6 / steps).toFixed(1)} MB`,
  ];
});
const header = [
  "ranks",
  ...shown.map((step) => `loss at ${step}`),
  "largest difference",
  "held by a rank",
  "sent a step",
];
const line = (cells) => `| ${cells.join(" | ")} |`;
console.log([line(header), line(header.map(() => "---")), ...rows.map(line)].join("\n"));
if (options.out) {
  const record = {
    benchmark: "ranks",
    date: new Date().toISOString(),
    ...buildInfo(),
    options,
    results,
  };
  writeFileSync(options.out, `${JSON.stringify(record, null, 1)}\n`);
}
process.exitCode = results.some(({ largestDifference }) => largestDifference > bound) ? 1 : 0;
