/** Extremes of the hashes of all documents, as fractions. */
export interface HoldOut {
  lowestHash: number;
  highestHash: number;
}

/**
 * A document's place among all hashes, as a fraction below 1: the first 48 bits of the SHA-256 of its UTF-8 bytes.
 * @param offset where the hash starts
 */
export function hashFraction(hashes: Uint8Array, offset: number): number {
  const { buffer, byteOffset } = hashes;
  const view = new DataView(buffer, byteOffset + offset);
  return (view.getUint32(0) * 2 ** 16 + view.getUint16(4)) / 2 ** 48;
}

/**
 * A threshold that leaves neither side empty, if the one at hand did and there is one: just above the lowest hash, or
 * at the highest. Copies of one document stay together: they are trained on rather than all held out.
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
