/**
 * Sizes of steps on a GPU. A graph serves one number of rows, and the fastest algorithm of a matrix
 * product is measured once for each number of rows, so steps come in a few sizes and are filled up
 * with rows that belong to no sequence. A CPU needs neither, and computes no row in vain.
 */

/** Rows of a step that computes one token of each of `count` sequences. Up to 16 cost the same. */
export function paddedRows(count: number): number {
  if (count <= 16) return 2 ** Math.ceil(Math.log2(count));
  const unit = count <= 64 ? 16 : count <= 256 ? 32 : 64;
  return Math.ceil(count / unit) * unit;
}

/** Tokens of a step that computes `count` tokens, some of them of prompts. */
export function paddedTokens(count: number): number {
  if (count <= 16) return paddedRows(count);
  const unit = count <= 256 ? 64 : count <= 1024 ? 128 : 256;
  return Math.ceil(count / unit) * unit;
}
