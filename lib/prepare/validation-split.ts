/** Extremes of all documents' hashes, as fractions below 1. */
export interface HoldOut {
  lowestHash: number;
  highestHash: number;
}

/**
 * Position of a document's hash among all possible hashes, as a fraction below 1: the first 48 bits
 * of the SHA-256 of its UTF-8 bytes.
 * @param offset start of the hash in `hashes`
 */
export function hashFraction(hashes: Uint8Array, offset: number): number {
  const { buffer, byteOffset } = hashes;
  const view = new DataView(buffer, byteOffset + offset);
  return (view.getUint32(0) * 2 ** 16 + view.getUint16(4)) / 2 ** 48;
}

/**
 * The threshold to use instead if the present one left a split empty: just above the lowest hash,
 * or at the highest. Copies of a single document stay together, and are trained on rather than all
 * held out.
 * @returns null if the present threshold stays
 */
export function movedThreshold(
  { lowestHash, highestHash }: HoldOut,
  splits: { train: { documents: number }; validation: { documents: number } },
): number | null {
  const noTraining = splits.train.documents === 0;
  if (lowestHash === highestHash) return noTraining ? 0 : null;
  if (noTraining) return highestHash;
  return splits.validation.documents === 0 ? lowestHash + 2 ** -48 : null;
}
