// Checks LlamaForge against reference cases that another implementation has made:
//
//   npm run golden -- DIR... [--device cpu] [--dtype f32|bf16]
//
// Each DIR holds a Hugging Face Llama or relative (config.json, model.safetensors), io.safetensors
// (input_ids, labels, logits, loss), grads.safetensors, generate.json, and a training run
// (train.safetensors, train.json, after.safetensors). The output is one JSON line per case with the largest measured
// errors, ||ours - reference|| / ||reference||. The exit code is 1 if an error exceeds its
// tolerance. In bf16 only the losses have a tolerance (absolute, in nats), because rounding makes
// the other figures merely informative.
import { existsSync, readFileSync } from "node:fs";
import { basename, join } from "node:path";
import { pathToFileURL } from "node:url";
import {
  AdamW,
  cosineSchedule,
  empty,
  generateTokens,
  loadModel,
  noGrad,
  parseDevice,
  readSafetensors,
  scope,
  tensor,
  trainStep,
} from "../dist/index.js";

/**
 * ||a - b|| / ||b|| in float64. It is NaN if either array holds a NaN, and NaN is never within a
 * tolerance.
 */
function relativeError(a, b) {
  if (a.length !== b.length) throw new Error(`${a.length} numbers against ${b.length}`);
  let difference = 0;
  let size = 0;
  for (let i = 0; i < a.length; i++) {
    difference += (a[i] - b[i]) ** 2;
    size += b[i] ** 2;
  }
  return Math.sqrt(difference) / Math.max(Math.sqrt(size), 1e-30);
}

/** The tensors of a file as typed arrays with their shapes. */
async function readFileTensors(path, device) {
  const { tensors } = await readSafetensors(path);
  const result = new Map();
  for (const [name, stored] of tensors) {
    const dtype = stored.dtype.startsWith("I") ? "i32" : "f32";
    const target = empty(stored.shape.length === 0 ? [1] : stored.shape, { dtype, device });
    stored.readInto(target.native);
    result.set(name, { shape: stored.shape, values: await target.toArray() });
    target.dispose();
  }
  return result;
}

const parameterValues = async (model, pick) => {
  const values = new Map();
  for (const { name, shape, parameter, offset } of model.files.tensors) {
    const source = pick(parameter);
    if (!source) throw new Error(`${name} has no gradient`);
    const view = source.view(shape, offset);
    values.set(name, await view.toArray());
    view.dispose();
  }
  return values;
};

/** The parameter with the largest error, for two maps by name. */
export function worst(ours, reference) {
  let worstError = 0;
  let worstName = "";
  for (const [name, { values }] of reference) {
    const error = relativeError(ours.get(name) ?? new Float32Array(), values);
    // NaN counts as the largest error; no comparison with NaN is true.
    if (Number.isNaN(error)) return { error, name };
    if (error > worstError) [worstError, worstName] = [error, name];
  }
  if (ours.size !== reference.size)
    throw new Error(`${ours.size} parameters against ${reference.size}`);
  return { error: worstError, name: worstName };
}

const tolerancesByDtype = {
  f32: {
    logits: 1e-5,
    loss: 1e-5,
    gradients: 2e-5,
    trainLosses: 2e-5,
    trainGradNorms: 2e-5,
    finalWeights: 1e-4,
  },
  bf16: { lossNats: 0.02, trainLossNats: 0.02 },
};

/** Runs one case. @returns the measured errors, and those that exceed their tolerance */
export async function checkCase(folder, { device: deviceText = "cpu", dtype = "f32" } = {}) {
  const device = parseDevice(deviceText);
  const measured = { case: basename(folder), device: deviceText, dtype };
  const failures = [];
  await scope(async () => {
    await checkForwardAndBackward(folder, { device, dtype }, measured);
    await checkGeneration(folder, { device, dtype }, measured, failures);
    if (existsSync(join(folder, "train.json")))
      await checkTraining(folder, { device, dtype }, measured);
  });
  for (const [name, tolerance] of Object.entries(tolerancesByDtype[dtype])) {
    if (!(name in measured)) continue;
    if (!(measured[name] <= tolerance))
      failures.push(`${name} ${measured[name]} is above ${tolerance}`);
  }
  return { ...measured, passed: failures.length === 0, failures };
}

async function checkForwardAndBackward(folder, { device, dtype }, measured) {
  const io = await readFileTensors(join(folder, "io.safetensors"), device);
  const model = await loadModel(folder, { device, dtype, training: true });
  const { shape } = io.get("input_ids");
  const ids = tensor(io.get("input_ids").values, { shape, device });
  const labels = tensor(io.get("labels").values, { shape, device });
  const logits = await noGrad(() => model.forward(ids).toArray());
  measured.logits = relativeError(logits, io.get("logits").values);
  const loss = model.loss({ inputs: ids, targets: labels });
  loss.backward();
  const reference = io.get("loss").values[0];
  const ours = await loss.item();
  measured.loss = Math.abs(ours - reference) / Math.abs(reference);
  measured.lossNats = Math.abs(ours - reference);
  const gradients = await parameterValues(model, (parameter) => parameter.tensor.grad);
  const { error, name } = worst(
    gradients,
    await readFileTensors(join(folder, "grads.safetensors"), device),
  );
  measured.gradients = error;
  measured.worstGradient = name;
  model.dispose();
}

async function checkGeneration(folder, { device, dtype }, measured, failures) {
  const { prompt, greedy } = JSON.parse(readFileSync(join(folder, "generate.json"), "utf8"));
  const model = await loadModel(folder, { device, dtype });
  const ids = [];
  for await (const id of generateTokens(model, prompt, {
    maxTokens: greedy.length,
    temperature: 0,
  }))
    ids.push(id);
  const equal = greedy.findIndex((id, index) => id !== ids[index]);
  measured.greedyTokensEqual = equal < 0 ? greedy.length : equal;
  if (dtype === "f32" && equal >= 0) {
    failures.push(`greedy token ${equal} is ${ids[equal]}, the reference has ${greedy[equal]}`);
  }
  model.dispose();
}

async function checkTraining(folder, { device, dtype }, measured) {
  const recipe = JSON.parse(readFileSync(join(folder, "train.json"), "utf8"));
  const { values, shape } = (await readFileTensors(join(folder, "train.safetensors"), device)).get(
    "tokens",
  );
  const [, batch, stride] = shape;
  const model = await loadModel(folder, { device, dtype, training: true });
  const { betas, eps, weight_decay: weightDecay, decay } = recipe.adamw;
  const optimizer = new AdamW(model.store, {
    beta1: betas[0],
    beta2: betas[1],
    eps,
    weightDecay,
    decay,
  });
  const { peak, min, warmup, total } = recipe.schedule;
  const schedule = cosineSchedule({
    peakLr: peak,
    minLr: min,
    warmupSteps: warmup,
    decaySteps: total,
  });
  measured.trainLosses = measured.trainLossNats = measured.trainGradNorms = 0;
  for (const { step, lr, loss, grad_norm: gradNorm } of recipe.steps) {
    if (Math.abs(schedule(step) - lr) > 1e-12)
      throw new Error(`step ${step}: our lr is ${schedule(step)}, not ${lr}`);
    const windows = values.subarray(step * batch * stride, (step + 1) * batch * stride);
    const rows = (from) =>
      Int32Array.from({ length: batch * (stride - 1) }, (_, i) => {
        const row = Math.floor(i / (stride - 1));
        return windows[row * stride + (i % (stride - 1)) + from];
      });
    const { figures } = await trainStep({
      model,
      optimizer,
      nextBatch: async () => ({ inputs: rows(0), targets: rows(1), count: batch }),
      accumulation: 1,
      lr: schedule(step),
      clip: recipe.clip,
    });
    const ours = await figures;
    const norm = ours.decision[4];
    measured.trainLosses = Math.max(
      measured.trainLosses,
      Math.abs(ours.loss - loss) / Math.abs(loss),
    );
    measured.trainLossNats = Math.max(measured.trainLossNats, Math.abs(ours.loss - loss));
    measured.trainGradNorms = Math.max(
      measured.trainGradNorms,
      Math.abs(norm - gradNorm) / gradNorm,
    );
  }
  const after = join(folder, "after.safetensors");
  if (existsSync(after)) {
    const weights = await parameterValues(model, (parameter) => parameter.master);
    const { error, name } = worst(weights, await readFileTensors(after, device));
    measured.finalWeights = error;
    measured.worstWeight = name;
  }
  optimizer.dispose();
  model.dispose();
}

async function main(args) {
  const folders = [];
  const options = {};
  for (let i = 0; i < args.length; i++) {
    const name = /^--(device|dtype)$/.exec(args[i])?.[1];
    if (!name) folders.push(args[i]);
    else options[name] = args[++i];
  }
  if (folders.length === 0 || folders.some((folder) => folder.startsWith("-"))) {
    console.error("usage: npm run golden -- DIR... [--device cpu] [--dtype f32|bf16]");
    return 2;
  }
  if (options.dtype !== undefined && !(options.dtype in tolerancesByDtype)) {
    console.error(`--dtype is ${options.dtype}: expected f32 or bf16`);
    return 2;
  }
  let passed = true;
  for (const folder of folders) {
    const result = await checkCase(folder, options);
    console.log(JSON.stringify(result));
    passed &&= result.passed;
  }
  return passed ? 0 : 1;
}

if (import.meta.url === pathToFileURL(process.argv[1]).href)
  process.exitCode = await main(process.argv.slice(2));
