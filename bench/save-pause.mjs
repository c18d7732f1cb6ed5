// Measures how long training pauses for a save. The pause is the copy of weights, master weights
// and moments to the host; a step waits for nothing else. The first copy takes memory from the
// system, and later copies reuse it.
//
//   node bench/save-pause.mjs [--device cpu|cuda:0] [--preset tinyllama-1.1b] [--layers N] [--saves 4]
//
// Nothing changes between the saves, so all copies must be equal: exit code 1 if one differs.
import { createHash } from "node:crypto";
import { parseArgs } from "node:util";
import { HostCopies } from "../dist/checkpoint/host-copies.js";
import { weightSources } from "../dist/checkpoint/model.js";
import { optimizerSources } from "../dist/checkpoint/optimizer.js";
import { AdamW, Llama, parseDevice, presets, synchronize } from "../dist/index.js";

const { values: options } = parseArgs({
  options: {
    device: { type: "string", default: "cuda:0" },
    preset: { type: "string", default: "tinyllama-1.1b" },
    layers: { type: "string" },
    saves: { type: "string", default: "4" },
  },
});
const device = parseDevice(options.device);
const preset = presets[options.preset];
if (preset === undefined) throw new Error(`presets: ${Object.keys(presets).join(", ")}`);
const config = { ...preset, ...(options.layers && { layers: Number(options.layers) }) };
const model = await Llama.create(config, { device, dtype: "bf16", seed: 1 });
const optimizer = new AdamW(model.store);
await synchronize(device);
const copies = new HostCopies();

/** Pause in milliseconds, bytes, and a hash of some bytes of every tensor. */
async function save(into) {
  const started = performance.now();
  const sources = await Promise.all([
    weightSources(model, into),
    optimizerSources(optimizer, into),
  ]);
  const ms = performance.now() - started;
  const hash = createHash("sha256");
  let bytes = 0;
  for (const { name, bytes: content } of sources.flat()) {
    const all = content();
    bytes += all.length;
    hash.update(name).update(all.subarray(0, 4096)).update(all.subarray(-4096));
  }
  return { ms, bytes, hash: hash.digest("hex") };
}

const millions = model.store.groups.reduce((sum, { size }) => sum + size, 0) / 1e6;
console.log(`${options.preset} on ${options.device}, ${millions.toFixed(0)} M parameters`);
const hashes = new Set();
for (let index = 1; index <= Number(options.saves); index++) {
  const { ms, bytes, hash } = await save(copies);
  hashes.add(hash);
  const rate = `${(bytes / 1e9).toFixed(2)} GB, ${(bytes / ms / 1e6).toFixed(2)} GB/s`;
  console.log(`save ${index}: ${ms.toFixed(0).padStart(6)} ms   ${rate}`);
}
if (hashes.size !== 1) {
  console.error("the copies differ");
  process.exitCode = 1;
}
