import { type Reference, reference } from "./reference.js";

/** Mean of -log softmax(row)[target] over the rows whose target is not ignoreIndex; a scalar. */
export function crossEntropyReference(
  logits: Reference,
  targets: readonly number[],
  ignoreIndex: number,
): Reference {
  const classes = logits.shape.at(-1) as number;
  let sum = 0;
  let count = 0;
  targets.forEach((target, row) => {
    if (target === ignoreIndex) return;
    const values = logits.data.subarray(row * classes, (row + 1) * classes);
    const highest = values.reduce((a, b) => Math.max(a, b), -Infinity);
    const total = values.reduce((a, value) => a + Math.exp(value - highest), 0);
    sum += highest + Math.log(total) - values[target]!;
    count++;
  });
  return reference([], [sum / count]);
}

/** A target for each row, every third ignored, but not the first. */
export const someTargets = (rows: number, classes: number, ignoreIndex: number): number[] =>
  Array.from({ length: rows }, (_, row) => (row % 3 === 2 ? ignoreIndex : (row * 7 + 3) % classes));

/**
 * a (m,k) · b (k,n), either one stored transposed. Plain loops: the general reference would take
 * minutes.
 */
export function product(
  a: Reference,
  b: Reference,
  transposeA = false,
  transposeB = false,
): Reference {
  const [m, k] = (transposeA ? [a.shape[1], a.shape[0]] : a.shape) as [number, number];
  const n = b.shape[transposeB ? 0 : 1] as number;
  const out = new Float64Array(m * n);
  for (let i = 0; i < m; ++i) {
    for (let j = 0; j < n; ++j) {
      let sum = 0;
      for (let l = 0; l < k; ++l) {
        sum +=
          a.data[transposeA ? l * m + i : i * k + l]! * b.data[transposeB ? j * k + l : l * n + j]!;
      }
      out[i * n + j] = sum;
    }
  }
  return { shape: [m, n], data: out };
}
