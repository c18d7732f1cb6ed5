import { arange } from "../core/create.js";
import type { Tensor } from "../core/tensor.js";
import { broadcastTo, maximum, sub } from "../ops/index.js";

/** Where tokens stand in their sequences: from a first position on, or at a position of each. */
type TokenPlaces = { position: number } | { positions: Tensor };

/**
 * The first token that each token attends to with a sliding window of W tokens: max(0, position -
 * W + 1), or the limit that it has already if that is later.
 * @param window   W, at least 1
 * @param ids      (batch, time) i32
 * @param places   position of the first token of each row, or positions (batch, time) i32
 * @param firstKey (batch, time) i32: the limits so far, such as the starts of documents
 * @returns (batch, time) i32; `firstKey` itself where the window limits nothing
 */
export function windowStarts(
  window: number,
  ids: Tensor,
  places: TokenPlaces,
  firstKey?: Tensor,
): Tensor | undefined {
  const [batch, time] = ids.shape as [number, number];
  if ("positions" in places) return maximum(sub(places.positions, window - 1), firstKey ?? 0);
  const { position } = places;
  if (position + time <= window) return firstKey;
  const starts = arange(time, { start: position - window + 1, device: ids.device }); // (time)
  return firstKey ? maximum(starts, firstKey) : broadcastTo(maximum(starts, 0), [batch, time]);
}
