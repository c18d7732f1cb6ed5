import { expect, it } from "vitest";
import { presets } from "../../lib/model/presets.js";
import { flopsPerToken, modelFlopsUtilisation, peakOf } from "../../lib/plan/flops.js";

const tinyllama = flopsPerToken(presets["tinyllama-1.1b"], 2048);

it("counts TinyLlama at 2048 in both conventions", () => {
  expect(tinyllama.linear / 1e9).toBeCloseTo(6.2065, 4);
  expect(tinyllama.causalAttention / 1e9).toBeCloseTo(0.5536, 4);
  expect(tinyllama.causal / 1e9).toBeCloseTo(6.76, 3);
  expect(tinyllama.fullAttention / 1e9).toBeCloseTo(7.314, 3);
});

it("gives TinyLlama's published 56% in its convention and 52% causally", () => {
  const { tflops } = peakOf("NVIDIA A100-SXM4-40GB")!;
  expect(modelFlopsUtilisation(24_000, tinyllama.fullAttention, tflops)).toBeCloseTo(0.563, 3);
  expect(modelFlopsUtilisation(24_000, tinyllama.causal, tflops)).toBeCloseTo(0.52, 3);
});

it("counts the head once more when it is tied, since its product is still made", () => {
  const config = presets.quickstart;
  expect(flopsPerToken({ ...config, tieEmbeddings: true }, 256)).toEqual(
    flopsPerToken(config, 256),
  );
});

it("counts the tokens within a sliding window, in the layers that have one", () => {
  const mistral = presets["mistral-7b"];
  const attention = (config: typeof mistral, tokens: number) =>
    flopsPerToken(config, tokens).causalAttention;
  const narrow = { ...mistral, slidingWindow: 1024 };
  expect(attention(narrow, 1024)).toBe(attention(mistral, 1024));
  // Of 4096 tokens, the first 1024 see 512 on average and the others 1024.
  expect(attention(narrow, 4096) / attention(mistral, 4096)).toBe((512 + 3 * 1024) / 4 / 2048);
  expect(flopsPerToken(narrow, 4096).fullAttention).toBe(
    flopsPerToken(mistral, 4096).fullAttention,
  );
  const half = { ...narrow, family: "qwen2", windowLayers: [...Array(16).keys()] } as const;
  expect(attention(half, 4096)).toBe((attention(narrow, 4096) + attention(mistral, 4096)) / 2);
});

it("counts no operations for biases and norms", () => {
  const { "qwen3-0.6b": qwen3, "smollm2-135m": plain } = presets;
  const biased = { ...plain, attentionBias: true, feedForwardBias: true };
  expect(flopsPerToken(biased, 512)).toEqual(flopsPerToken(plain, 512));
  const { headSize, heads, kvHeads, hiddenSize, intermediateSize, layers, vocabSize } = qwen3;
  const block = hiddenSize * (headSize * 2 * (heads + kvHeads) + 3 * intermediateSize);
  expect(flopsPerToken(qwen3, 512).linear).toBe(6 * (layers * block + vocabSize * hiddenSize));
});

it.each([
  ["NVIDIA H100 80GB HBM3", "H100 SXM", 989.4],
  ["NVIDIA H100 PCIe", "H100 PCIe", 756],
  ["NVIDIA H100 NVL", "H100 NVL", 835],
  ["NVIDIA H200", "H200", 989.4],
  ["NVIDIA GH200 480GB", "H200", 989.4],
  ["NVIDIA B200", "B200", 2250],
  ["NVIDIA A100-SXM4-80GB", "A100", 312],
  ["NVIDIA A800-SXM4-80GB", "A100", 312],
  ["NVIDIA L4", "L4", 121],
  ["NVIDIA L40S", "L40S", 362],
  ["NVIDIA GeForce RTX 4090", "RTX 4090", 165.2],
])("%s has the dense peak of %s", (device, name, tflops) => {
  expect(peakOf(device)).toEqual({ name, tflops });
});

it("states no peak for a device it does not know", () => {
  expect(peakOf("AMD EPYC 9554")).toBeUndefined();
  expect(peakOf("NVIDIA L400")).toBeUndefined();
});
