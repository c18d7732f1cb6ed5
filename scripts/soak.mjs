// Trains the quickstart again and again under random SIGKILL, and compares every run with an unbroken one bit for bit:
// losses, gradient norms, validation, samples, weights, optimizer state.
//
//   npm run soak -- --minutes 45             of training under kills, one every 30 s on average
//   npm run soak -- --minutes 3 --mean-seconds 8 --steps 60 --every 5
//
// The run in progress when the minutes are over ends without further kills, so that it can be
// compared too. The script ends with 1 at the first difference and keeps the folder that differs.
// The figures go to build/soak/result.json.
import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { cpus } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const number = (standard) => ({ type: "string", default: String(standard) });
const { values } = parseArgs({
  options: {
    minutes: number(45),
    "mean-seconds": number(30),
    steps: number(500),
    every: number(10),
    seed: number(1),
    out: { type: "string", default: join(root, "build", "soak") },
  },
});
const option = (name) => Number(values[name]);
const folder = values.out;
const cli = join(root, "dist", "cli", "main.js");

/**
 * A small generator with a fixed seed, so that the kills repeat as far as the machine's speed
 * allows.
 */
let state = option("seed") >>> 0;
function random() {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
  return (state + 0.5) / 2 ** 32;
}

function llamaforge(...args) {
  const child = spawn(process.execPath, [cli, ...args], {
    cwd: folder,
    stdio: ["ignore", "ignore", "pipe"],
  });
  child.errors = "";
  child.stderr.on("data", (chunk) => {
    child.errors = (child.errors + chunk).slice(-4000);
  });
  return child;
}

async function finished(child) {
  const [code, signal] = await once(child, "close");
  return { code, signal, errors: child.errors };
}

function train(name) {
  const overrides = [
    `out=${name}`,
    `steps=${values.steps}`,
    `optimizer.warmupSteps=${Math.min(35, option("steps") >> 2)}`,
    `checkpoint.every=${values.every}`,
  ].flatMap((text) => ["--set", text]);
  return llamaforge("train", join(root, "configs", "quickstart.yaml"), ...overrides);
}

async function prepareData() {
  for (const [name, source, kind] of [
    ["text", join(root, "node_modules", "@stdlib", "datasets-sotu", "data"), "text"],
    ["code", join(root, "lib"), "code"],
  ]) {
    const out = join("data", `quickstart-${name}`);
    if (existsSync(join(folder, out, "dataset.json"))) continue;
    const tokenizer = join(root, "assets", "quickstart");
    const args = ["prepare", source, "--out", out, "--tokenizer", tokenizer, "--kind", kind];
    const { code, errors } = await finished(llamaforge(...args));
    if (code !== 0) throw new Error(`prepare ${kind} ended with ${code}: ${errors}`);
  }
}

/** Everything in a finished run that must not depend on how often it was killed. */
function outcome(name) {
  const step = `step-${values.steps.padStart(10, "0")}`;
  const hash = (file) =>
    createHash("sha256")
      .update(readFileSync(join(folder, name, step, file)))
      .digest("hex");
  const curve = readFileSync(join(folder, name, "metrics.jsonl"), "utf8")
    .trimEnd()
    .split("\n")
    .map((line) => {
      const { step, loss, gradNorm, lr, validation, samples } = JSON.parse(line);
      return { step, loss, gradNorm, lr, validation, samples };
    });
  return {
    curve,
    weights: hash("model.safetensors"),
    optimizer: hash("optimizer-state.safetensors"),
  };
}

function lastStep(name) {
  try {
    const lines = readFileSync(join(folder, name, "metrics.jsonl"), "utf8")
      .trimEnd()
      .split("\n");
    return JSON.parse(lines.findLast((line) => line.endsWith("}"))).step;
  } catch {
    return 0;
  }
}

/** The entries of a run's folder. A run that is killed in its first moments has no folder yet. */
function entriesOf(name) {
  return existsSync(join(folder, name)) ? readdirSync(join(folder, name)) : [];
}

const kills = { duringStart: 0, betweenSaves: 0, duringSave: 0 };

/** Completes one run under kills at exponentially distributed intervals. */
async function killedRun(name, deadline) {
  for (;;) {
    const before = lastStep(name);
    const child = train(name);
    const wait = -Math.log(random()) * option("mean-seconds") * 1000;
    const timer = setTimeout(() => {
      if (Date.now() < deadline) child.kill("SIGKILL");
    }, wait);
    const { code, signal, errors } = await finished(child);
    clearTimeout(timer);
    if (signal === null) {
      if (code === 0) return;
      throw new Error(`${name} ended with ${code}: ${errors}`);
    }
    const saving = entriesOf(name).some((entry) => entry.endsWith(".tmp"));
    const moved = lastStep(name) - before;
    kills[saving ? "duringSave" : moved === 0 ? "duringStart" : "betweenSaves"] += 1;
  }
}

function difference(expected, got) {
  for (const [index, step] of expected.curve.entries()) {
    const [one, other] = [step, got.curve[index]].map((value) => JSON.stringify(value));
    if (one !== other) return `step ${step.step}: unbroken ${one}, killed ${other}`;
  }
  if (got.curve.length !== expected.curve.length) return `${got.curve.length} steps recorded`;
  for (const part of ["weights", "optimizer"]) {
    if (expected[part] !== got[part]) return `${part} differ`;
  }
  return null;
}

mkdirSync(folder, { recursive: true });
await prepareData();
rmSync(join(folder, "unbroken"), { recursive: true, force: true });
const started = Date.now();
const unbroken = await finished(train("unbroken"));
if (unbroken.code !== 0) throw new Error(`the unbroken run failed: ${unbroken.errors}`);
const unbrokenSeconds = (Date.now() - started) / 1000;
const expected = outcome("unbroken");
console.log(`unbroken: ${values.steps} steps in ${unbrokenSeconds.toFixed(0)} s`);

const begun = Date.now();
const deadline = begun + option("minutes") * 60_000;
let runs = 0;
while (Date.now() < deadline) {
  const name = `killed-${++runs}`;
  rmSync(join(folder, name), { recursive: true, force: true });
  await killedRun(name, deadline);
  const found = difference(expected, outcome(name));
  const total = kills.duringStart + kills.betweenSaves + kills.duringSave;
  const seconds = (Math.min(Date.now(), deadline) - begun) / 1000;
  const result = {
    date: new Date().toISOString().slice(0, 10),
    cpu: cpus()[0].model,
    node: process.version,
    minutesUnderKills: Number((seconds / 60).toFixed(1)),
    minutesInAll: Number(((Date.now() - begun) / 60_000).toFixed(1)),
    runs,
    steps: runs * option("steps"),
    saveEvery: option("every"),
    kills: { total, ...kills, secondsBetween: Number((seconds / Math.max(1, total)).toFixed(1)) },
    equal: found === null,
    unbrokenSeconds,
  };
  writeFileSync(join(folder, "result.json"), `${JSON.stringify(result, null, 2)}\n`);
  console.log(JSON.stringify(result));
  if (found !== null) {
    console.error(`${name} differs from the unbroken run: ${found}`);
    process.exit(1);
  }
  rmSync(join(folder, name), { recursive: true, force: true });
}
