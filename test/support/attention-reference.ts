import { type FloatDType, type Reference, random, reference } from "./reference.js";

/** Heads of packed q, k, v (batch, time, (heads + 2 kvHeads) · headSize). */
export interface HeadCounts {
  heads: number;
  kvHeads: number;
  scale?: number;
}

/** Random packed q, k, v. */
export function packedHeads(
  batch: number,
  time: number,
  { heads, kvHeads }: HeadCounts,
  size: number,
  seed = 1,
  dtype?: FloatDType,
): Reference {
  const range = { low: -1.5, high: 1.5, ...(dtype && { dtype }) };
  return random([batch, time, (heads + 2 * kvHeads) * size], seed, range);
}

/**
 * Causal attention and its gradient in float64, row by row as in the formulas. Tests compare the
 * gradient with finite differences at small sizes. At the size of a tile these differences would
 * take minutes.
 * @param dO gradient of the output, or null
 * @param starts (batch, time): the first key that each query sees, or null: all from 0
 */
export function causalAttention(
  qkv: Reference,
  { heads, kvHeads, scale }: HeadCounts,
  dO: Reference | null,
  starts: Int32Array | null = null,
) {
  const [batch, time, width] = qkv.shape as [number, number, number];
  const headSize = width / (heads + 2 * kvHeads);
  const factor = scale ?? 1 / Math.sqrt(headSize);
  const o = reference([batch, time, heads * headSize], () => 0);
  const dqkv = reference(qkv.shape, () => 0);
  const row = (b: number, t: number, head: number) => (b * time + t) * width + head * headSize;
  const dot = (x: Float64Array, i: number, y: Float64Array, j: number) => {
    let sum = 0;
    for (let d = 0; d < headSize; ++d) sum += x[i + d]! * y[j + d]!;
    return sum;
  };
  const add = (to: Float64Array, i: number, weight: number, from: Float64Array, j: number) => {
    for (let d = 0; d < headSize; ++d) to[i + d]! += weight * from[j + d]!;
  };
  const { data: x } = qkv;
  for (let b = 0; b < batch; ++b) {
    for (let head = 0; head < heads; ++head) {
      const kv = Math.floor((head * kvHeads) / heads);
      const [keyHead, valueHead] = [heads + kv, heads + kvHeads + kv];
      for (let t = 0; t < time; ++t) {
        const q = row(b, t, head);
        const first = starts?.[b * time + t] ?? 0;
        const scores = Array.from({ length: t + 1 }, (_, j) =>
          j < first ? -Infinity : factor * dot(x, q, x, row(b, j, keyHead)),
        );
        const highest = Math.max(...scores);
        const weights = scores.map((score) => Math.exp(score - highest));
        const sum = weights.reduce((a, w) => a + w, 0);
        const p = weights.map((w) => w / sum);
        const out = ((b * time + t) * heads + head) * headSize;
        for (const [j, weight] of p.entries()) add(o.data, out, weight, x, row(b, j, valueHead));
        if (!dO) continue;
        const dp = p.map((_, j) => dot(dO.data, out, x, row(b, j, valueHead)));
        const mean = dp.reduce((a, value, j) => a + value * p[j]!, 0);
        p.forEach((weight, j) => {
          const dScore = factor * weight * (dp[j]! - mean);
          add(dqkv.data, q, dScore, x, row(b, j, keyHead));
          add(dqkv.data, row(b, j, keyHead), dScore, x, q);
          add(dqkv.data, row(b, j, valueHead), weight, dO.data, out);
        });
      }
    }
  }
  return { o, dqkv };
}

/**
 * The starts of windows that hold documents of these lengths, one list a window; a list's last
 * length repeats.
 */
export function startsOf(lengths: readonly (readonly number[])[], time: number): Int32Array {
  const starts = new Int32Array(lengths.length * time);
  for (const [b, list] of lengths.entries()) {
    let [document, start] = [0, 0];
    for (let t = 0; t < time; ++t) {
      if (t - start >= list[Math.min(document, list.length - 1)]!) {
        start = t;
        document++;
      }
      starts[b * time + t] = start;
    }
  }
  return starts;
}
