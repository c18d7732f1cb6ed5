// Greedy decoding of TinyLlama-1.1B in bf16, one sequence: tokens/s, compared with the limit of
// reading the weights once per token.
//
//   node bench/gpu-decode.mjs [--device cuda:0] [--tokens 256] [--prompt 128] [--bandwidth 3.0e12] [--out FILE]
//
// The weights are random, because the time does not depend on them. Every weight but the embedding
// is read for each token; the limit is their bytes divided by the bandwidth of a large copy. The
// bench also prints how long JavaScript takes to enqueue a token.
import { writeFileSync } from "node:fs";
import { parseArgs } from "node:util";
import {
  generateTokens,
  Llama,
  noGrad,
  parseDevice,
  presets,
  scope,
  synchronize,
  tensor,
} from "../dist/index.js";

const { values: options } = parseArgs({
  options: {
    device: { type: "string", default: "cuda:0" },
    tokens: { type: "string", default: "256" },
    prompt: { type: "string", default: "128" },
    bandwidth: { type: "string", default: "3.0e12" },
    out: { type: "string" },
  },
});
const device = parseDevice(options.device);
const config = presets["tinyllama-1.1b"];
const count = Number(options.tokens);
const prompt = Array.from({ length: Number(options.prompt) }, (_, i) => (i * 7919) % 32000);
const model = await Llama.create(config, { device, dtype: "bf16", seed: 1 });

const { layers, hiddenSize, intermediateSize, heads, kvHeads, headSize, vocabSize } = config;
const layer = hiddenSize * (2 * heads + 2 * kvHeads) * headSize + 3 * hiddenSize * intermediateSize;
const bytes = 2 * (layers * layer + vocabSize * hiddenSize);
const limit = Number(options.bandwidth) / bytes;

/** Tokens/s after the first token, whose time belongs to the prompt. */
async function generate() {
  const text = [];
  let start = 0;
  for await (const id of generateTokens(model, prompt, { maxTokens: count, temperature: 0 })) {
    if (text.length === 0) start = performance.now();
    text.push(id);
  }
  return { text, rate: (count - 1) / ((performance.now() - start) / 1000) };
}
await generate();
const runs = [];
for (let i = 0; i < 3; i++) runs.push(await generate());
const rate = runs.map((run) => run.rate).sort((a, b) => a - b)[1];
const same = runs.every(({ text }) => text.join() === runs[0].text.join());

// Measures the device alone and JavaScript alone: many tokens are enqueued without reading any.
const cache = model.createCache(1, prompt.length + count);
await synchronize(device);
const began = performance.now();
for (let i = 0; i < count; i++) {
  noGrad(() =>
    scope(() => {
      model.forward(tensor(Int32Array.of(1), { shape: [1, 1], device }), cache);
    }),
  );
}
const enqueued = ((performance.now() - began) / count) * 1000;
await synchronize(device);
const forward = ((performance.now() - began) / count) * 1000;

console.log(
  `greedy decoding, batch 1: ${rate.toFixed(0)} tok/s, ${(rate / limit).toFixed(2)} of the memory-bound limit of ` +
    `${limit.toFixed(0)} tok/s (${(bytes / 1e9).toFixed(2)} GB); a token's forward ${forward.toFixed(0)} us, of which ` +
    `JavaScript enqueues for ${enqueued.toFixed(0)} us; ${same ? "the same text every time" : "DIFFERENT TEXTS"}`,
);
if (!same) process.exitCode = 1;
if (options.out) {
  const result = { tokensPerSecond: rate, limit, fraction: rate / limit, forward, enqueued, same };
  writeFileSync(options.out, `${JSON.stringify(result, null, 2)}\n`);
}
