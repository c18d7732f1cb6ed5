import type { TokenDType } from "../../data/dataset-file.js";
import type { Tokenizer } from "../../data/tokenizer.js";
import { unmarked } from "../../generate/span-marks.js";
import { firstPiece, type TextBatch } from "./batch.js";

/** Pieces to encode. */
export interface EncodeRequest {
  text: Uint8Array;
  ends: Uint32Array;
  flags: Uint8Array;
  /** For each piece, whether it is to be encoded. */
  wanted: Uint8Array;
  /** Whether pieces are chats, with marks around the assistant's words. */
  chats: boolean;
}

/** Ids of the wanted pieces, in this machine's byte order, and the number of ids of each piece. */
export interface EncodedBatch {
  ids: Uint8Array;
  counts: Uint32Array;
  /** Of chats, for each id, 1 if the assistant wrote it; null for text. */
  counted: Uint8Array | null;
}

export function requestOf(
  { text, ends, flags }: TextBatch,
  wanted: Uint8Array,
  chats: boolean,
): EncodeRequest {
  return { text, ends, flags, wanted, chats };
}

export async function encodePieces(
  { text, ends, flags, wanted, chats }: EncodeRequest,
  tokenizer: Tokenizer,
  dtype: TokenDType,
): Promise<EncodedBatch> {
  const bytes = Buffer.from(text.buffer, text.byteOffset, text.byteLength);
  const parts: { text: string; continues: boolean; place: number }[] = [];
  for (let place = 0; place < ends.length; place++) {
    if (!wanted[place]) continue;
    const from = place === 0 ? 0 : (ends[place - 1] as number);
    const continues = ((flags[place] as number) & firstPiece) === 0;
    parts.push({ text: bytes.toString("utf8", from, ends[place]), continues, place });
  }
  const spanned = chats
    ? await tokenizer.encodeSpans(parts.map((part) => unmarked(part.text)))
    : null;
  const encoded = spanned ? spanned.map(({ ids }) => ids) : await tokenizer.encodeParts(parts);
  const counts = new Uint32Array(ends.length);
  const total = encoded.reduce((sum, ids) => sum + ids.length, 0);
  const ids = dtype === "uint16" ? new Uint16Array(total) : new Uint32Array(total);
  const counted = spanned && new Uint8Array(total);
  let at = 0;
  for (const [index, list] of encoded.entries()) {
    ids.set(list, at);
    if (counted) counted.set(spanned?.[index]?.counted as Uint8Array, at);
    at += list.length;
    counts[(parts[index] as { place: number }).place] = list.length;
  }
  return { ids: new Uint8Array(ids.buffer), counts, counted };
}
