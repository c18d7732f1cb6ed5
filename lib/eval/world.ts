import type { Cluster } from "../dist/cluster.js";

/** The processes that evaluate together. Each has the whole model, or a part of its weights. */
export interface EvalWorld {
  /** 0 to worldSize - 1. */
  readonly rank: number;
  readonly worldSize: number;
  /**
   * The numbers of every rank, bit for bit, in the order of ranks. All ranks call it at the same
   * point, with arrays of one length.
   */
  gather(values: Float64Array): Promise<Float64Array[]>;
}

/** The ranks of a connected cluster. */
export function clusterWorld(cluster: Cluster): EvalWorld {
  const { rank, worldSize } = cluster.world;
  return { rank, worldSize, gather: (values) => cluster.gatherNumbers(values) };
}

/**
 * A text of every rank, in the order of ranks. All ranks call it at the same point.
 */
export async function gatherTexts(world: EvalWorld, text: string): Promise<string[]> {
  const bytes = Buffer.from(text);
  const sizes = (await world.gather(Float64Array.of(bytes.length))).map(([size]) => size as number);
  // Texts travel as the bytes of 64-bit numbers, filled up to one length.
  const padded = new Float64Array(Math.max(1, Math.ceil(Math.max(...sizes) / 8)));
  Buffer.from(padded.buffer).set(bytes);
  const all = await world.gather(padded);
  return all.map((numbers, rank) =>
    Buffer.from(numbers.buffer, numbers.byteOffset, sizes[rank] as number).toString(),
  );
}
