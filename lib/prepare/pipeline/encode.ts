import { maskBits, type TokenDType } from "../../data/dataset-file.js";
import type { SpannedIds } from "../../data/spanned-text.js";
import type { Tokenizer } from "../../data/tokenizer.js";
import { spanMarks, unmarked } from "../../generate/span-marks.js";
import { firstPiece, type TextBatch } from "./batch.js";

/** Pieces to encode. */
export interface EncodeRequest {
  text: Uint8Array;
  ends: Uint32Array;
  flags: Uint8Array;
  /** For each piece, whether it is to be encoded. */
  wanted: Uint8Array;
  /** Set if pieces have marks around answers. */
  answers: AnswerIds | null;
}

/** Ids around each text with answers. The loss counts those behind it. */
export interface AnswerIds {
  start: readonly number[];
  end: readonly number[];
}

/** Ids of the wanted pieces, in this machine's byte order, and the number of ids of each piece. */
export interface EncodedBatch {
  ids: Uint8Array;
  counts: Uint32Array;
  /** Of answers, for each id its bits in a mask (`maskBits`); null for text. */
  counted: Uint8Array | null;
}

export function requestOf(
  { text, ends, flags }: TextBatch,
  wanted: Uint8Array,
  answers: AnswerIds | null,
): EncodeRequest {
  return { text, ends, flags, wanted, answers };
}

export async function encodePieces(
  { text, ends, flags, wanted, answers }: EncodeRequest,
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
  const spanned = answers && (await encodeAnswers(parts, answers, tokenizer));
  const encoded = spanned ? spanned.map(({ ids }) => ids) : await tokenizer.encodeParts(parts);
  const counts = new Uint32Array(ends.length);
  const total = encoded.reduce((sum, ids) => sum + ids.length, 0);
  const ids = dtype === "uint16" ? new Uint16Array(total) : new Uint32Array(total);
  const counted = spanned && new Uint8Array(total);
  let at = 0;
  for (const [index, list] of encoded.entries()) {
    ids.set(list, at);
    if (counted) counted.set(spanned?.[index]?.mask as Uint8Array, at);
    at += list.length;
    counts[(parts[index] as { place: number }).place] = list.length;
  }
  return { ids: new Uint8Array(ids.buffer), counts, counted };
}

/** The ids and masks of texts with marks. A pair has two texts, of which the second is rejected. */
async function encodeAnswers(
  parts: readonly { text: string }[],
  { start, end }: AnswerIds,
  tokenizer: Tokenizer,
): Promise<{ ids: Int32Array; mask: Uint8Array }[]> {
  const texts = parts.map(({ text }) => text.split(spanMarks.between));
  const encoded = await tokenizer.encodeSpans(texts.flat().map(unmarked));
  let next = 0;
  return texts.map((halves) => {
    const own = halves.map(() => encoded[next++] as SpannedIds);
    // An answer may spell the end itself.
    const ends = own.map(({ ids }) => (ids.at(-1) === end[0] ? [] : end));
    const size = own.reduce(
      (sum, { ids }, half) => sum + start.length + ids.length + (ends[half]?.length ?? 0),
      0,
    );
    const [ids, mask] = [new Int32Array(size), new Uint8Array(size)];
    let at = 0;
    for (const [half, text] of own.entries()) {
      const [first, last] = [at + start.length, at + start.length + text.ids.length];
      const behind = ends[half] as readonly number[];
      ids.set(start, at);
      ids.set(text.ids, first);
      ids.set(behind, last);
      mask.set(text.counted, first);
      mask.fill(maskBits.counted, last, last + behind.length);
      const from = at;
      at = last + behind.length;
      if (half === 0) continue;
      for (let place = from; place < at; place++) {
        mask[place] = (mask[place] as number) | maskBits.rejected;
      }
    }
    return { ids, mask };
  });
}
