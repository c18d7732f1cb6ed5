/** Small checkpoints. The step determines every byte, so a mixture of two checkpoints shows. */
import { createHash } from "node:crypto";
import type { Checkpoint } from "../../../lib/checkpoint/load.js";
import type { TensorSource } from "../../../lib/checkpoint/safetensors.js";
import type { CheckpointContents } from "../../../lib/checkpoint/save.js";

function bytesOf(seed: string, length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  for (let i = 0; i < length; i += 32) {
    const block = createHash("sha256").update(`${seed}/${i}`).digest();
    bytes.set(block.subarray(0, Math.min(32, length - i)), i);
  }
  return bytes;
}

function source(
  step: number,
  name: string,
  dtype: "F32" | "BF16" | "I64",
  shape: number[],
): TensorSource {
  const elementBytes = { F32: 4, BF16: 2, I64: 8 }[dtype];
  const length = shape.reduce((product, size) => product * size, elementBytes);
  return { name, dtype, shape, bytes: () => bytesOf(`${step}/${name}`, length) };
}

/** Weights in two shards with an index, optimizer state, a config and a trainer state. */
export function contentsOf(step: number): CheckpointContents {
  return {
    files: { "config.json": `${JSON.stringify({ hidden_size: 16, step })}\n` },
    tensors: {
      "model.safetensors": [
        source(step, "model.embed_tokens.weight", "BF16", [33, 16]),
        source(step, "model.norm.weight", "BF16", [15]),
        source(step, "lm_head.weight", "BF16", [33, 16]),
      ],
      "optimizer-moments.safetensors": [
        source(step, "model.norm.weight.m", "F32", [15]),
        source(step, "model.norm.weight.v", "F32", [15]),
        source(step, "steps", "I64", [1]),
      ],
    },
    trainer: { step, position: step * 8, window: [1.5, 0.1, step / 3] },
    run: { config: "c0ffee", worldSize: 1 },
    shardBytes: 1500,
  };
}

/** Throws unless every byte of the checkpoint is that of its step. */
export async function expectContents(checkpoint: Checkpoint): Promise<void> {
  const wanted = contentsOf(checkpoint.step);
  const fail = (what: string) => {
    throw new Error(`${checkpoint.path}: ${what} is not that of step ${checkpoint.step}`);
  };
  if (JSON.stringify(checkpoint.trainer) !== JSON.stringify(wanted.trainer)) fail("trainer.json");
  const config = new TextDecoder().decode(await checkpoint.readFile("config.json"));
  if (config !== wanted.files["config.json"]) fail("config.json");
  for (const [file, sources] of Object.entries(wanted.tensors)) {
    const stored = checkpoint.tensors.get(file);
    if (stored?.tensors.size !== sources.length) fail(file);
    for (const { name, bytes } of sources) {
      const got = await stored?.tensors.get(name)?.readBytes();
      if (!got || Buffer.compare(got, await bytes()) !== 0) fail(name);
    }
  }
}
