// Runs one recipe three times through the command line: whole, whole again, and stopped by SIGTERM
// in the middle and resumed. Losses, gradient norms and the hashes of weights and optimizer state
// must be equal; exit code 1 if they are not.
//
//   node bench/parity/same-bits.mjs --data FOLDER=WEIGHT,... --out FOLDER [--config FILE] [--steps 50] [--set a.b=c]...
import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { parseSources } from "./run.mjs";

const root = fileURLToPath(new URL("../..", import.meta.url));
const { values: options } = parseArgs({
  options: {
    data: { type: "string" },
    out: { type: "string" },
    config: { type: "string", default: join(root, "configs/tinyllama-120m.yaml") },
    steps: { type: "string", default: "50" },
    set: { type: "string", multiple: true, default: ["batch.accumulation=2"] },
  },
});
const steps = Number(options.steps);
mkdirSync(options.out, { recursive: true });
// Only the data sets of the recipe are changed. Their names are keys, which --set cannot replace.
const lines = readFileSync(options.config, "utf8").split("\n");
const first = lines.findIndex((line) => /^ {2}train:/.test(line)) + 1;
const count = lines.slice(first).findIndex((line) => !/^ {4}/.test(line));
const sources = Object.entries(parseSources(options.data)).map(([f, w]) => `    ${f}: ${w}`);
lines.splice(first, count, ...sources);
const config = join(options.out, "config.yaml");
writeFileSync(config, lines.join("\n"));

function start(name) {
  const out = join(options.out, name);
  const sets = [`out=${out}`, `steps=${steps}`, "optimizer.warmupSteps=10"];
  sets.push("evaluate.every=0", "sample.every=0", ...options.set);
  const args = ["train", config, ...sets.flatMap((set) => ["--set", set])];
  const child = spawn(process.execPath, [join(root, "dist/cli/main.js"), ...args], {
    stdio: ["ignore", "ignore", "inherit"],
  });
  return { child, out, ended: once(child, "exit") };
}
const metrics = (out) =>
  existsSync(join(out, "metrics.jsonl"))
    ? readFileSync(join(out, "metrics.jsonl"), "utf8")
        .trim()
        .split("\n")
        .filter(Boolean)
        .map(JSON.parse)
    : [];

function outcome(out) {
  const folder = join(out, `step-${String(steps).padStart(10, "0")}`);
  const hash = (file) =>
    createHash("sha256")
      .update(readFileSync(join(folder, file)))
      .digest("hex");
  return JSON.stringify({
    figures: metrics(out).map(({ step, loss, gradNorm }) => [step, loss, gradNorm]),
    weights: hash("model.safetensors"),
    optimizer: hash("optimizer-state.safetensors"),
  });
}

async function whole(name) {
  const { out, ended } = start(name);
  const [code] = await ended;
  if (code !== 0) throw new Error(`the run ${name} ended with ${code}`);
  return out;
}

async function resumed(name) {
  const { child, out, ended } = start(name);
  while (metrics(out).length < steps / 2 && child.exitCode === null) {
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  child.kill("SIGTERM");
  const [code] = await ended;
  if (code !== 75) throw new Error(`after SIGTERM the run ended with ${code}, not 75`);
  console.log(`stopped after step ${metrics(out).at(-1).step}, exit code 75`);
  return whole(name);
}

const outs = [await whole("first"), await whole("second"), await resumed("resumed")];
const [a, b, c] = outs.map(outcome);
const last = metrics(outs[0]).at(-1);
console.log(
  `${steps} steps: loss ${metrics(outs[0])[0].loss} -> ${last.loss}, norm ${last.gradNorm}, ` +
    `${Math.round(last.tokensPerSecond)} tok/s; weights ${JSON.parse(a).weights.slice(0, 16)}`,
);
console.log(
  `second run: ${a === b ? "equal bits" : "DIFFERENT"}; resumed run: ${a === c ? "equal bits" : "DIFFERENT"}`,
);
if (a !== b || a !== c) process.exitCode = 1;
else for (const out of outs.slice(1)) rmSync(out, { recursive: true });
