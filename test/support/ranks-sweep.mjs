// A strategy's steps on ranks that share GPU 0, for compute-sanitizer (scripts/sanitize.mjs): ranks-sweep.mjs STRATEGY RANKS
import { RankProcesses } from "../../bench/gpus/processes.mjs";

const [parallel, ranks] = process.argv.slice(2);
const settings = {
  preset: "quickstart",
  device: process.env.LLAMAFORGE_TEST_DEVICE === "cpu" ? "cpu" : "cuda",
  precision: "bf16",
  recompute: "none",
  reduce: "bf16",
  parallel,
  shardSize: 2,
  microBatch: 2,
  accumulation: 2,
  sequenceLength: 128,
  steps: 2,
  warmup: 0,
  tracedSteps: 0,
  timeoutSeconds: 300,
};
const gpus = settings.device === "cpu" ? 0 : 1;
const { alike } = await new RankProcesses(gpus, settings).run(Number(ranks));
console.log(alike ? `${ranks} ranks ran alike` : "the ranks differ");
