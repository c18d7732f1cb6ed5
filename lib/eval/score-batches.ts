import type { InputRow, PrefixGroup } from "./prefix-groups.js";

/** Sizes that a forward pass must not exceed. A single row always makes a pass. */
export interface PassLimits {
  /** Tokens, padding included. */
  readonly tokens: number;
  /** Sequences. */
  readonly rows: number;
  /** Sequences times places of a key/value cache. */
  readonly cacheTokens: number;
  /** Tokens of a sequence. */
  readonly contextLength: number;
  /** Cost of a pass besides its tokens, in tokens. */
  readonly passCost: number;
}

/** A row and the prefix that it continues. */
export interface Suffix {
  readonly row: InputRow;
  /** Index of its group in the batch. */
  readonly group: number;
}

/**
 * Work that goes through the device together: rows that are computed whole, in one pass, or the
 * prefixes of groups in one pass and then their rows' suffixes in several.
 */
export type ScoreBatch =
  | { readonly kind: "plain"; readonly passes: readonly [readonly InputRow[]] }
  | {
      readonly kind: "shared";
      readonly groups: readonly PrefixGroup[];
      readonly passes: readonly (readonly Suffix[])[];
    };

/** Tokens of a batch's suffixes, in passes: bounds the time between two looks at the signal. */
const mostPasses = 4;
/** Cost of a batch with prefixes, in passes: that of the prefixes, and some shorter passes. */
const batchPasses = 4;

/** Sizes of an item of a pass. */
interface ItemSize {
  /** Tokens that the pass computes. */
  length: number;
  /** Places that the item's sequences need after them in the cache. */
  after: number;
  /** Tokens of later passes. */
  later: number;
}

/**
 * Cuts a list into passes, longest items first. Each pass is padded to its longest item. The cuts
 * minimise the tokens with padding, plus `cost` for each pass.
 */
function cutInto<T>(
  items: readonly T[],
  sizeOf: (item: T) => ItemSize,
  limits: PassLimits,
  cost: number,
): T[][] {
  const sized = items
    .map((item) => ({ item, ...sizeOf(item) }))
    .sort((a, b) => b.length - a.length || b.after - a.after);
  // best[end] is the least cost of the items before `end`; starts[end] begins their last pass.
  const best = new Float64Array(sized.length + 1);
  const starts = new Int32Array(sized.length + 1);
  for (let end = 1; end <= sized.length; end++) {
    best[end] = Number.POSITIVE_INFINITY;
    let [after, later] = [0, 0];
    for (let start = end - 1; start >= 0; start--) {
      const first = sized[start] as (typeof sized)[number];
      const count = end - start;
      after = Math.max(after, first.after);
      later += first.later;
      const fits =
        count <= limits.rows &&
        count * first.length <= limits.tokens &&
        first.length + after <= limits.contextLength &&
        count * (first.length + after) <= limits.cacheTokens &&
        later <= mostPasses * limits.tokens;
      if (!fits && count > 1) break;
      const all = (best[start] as number) + count * first.length + cost;
      if (all < (best[end] as number)) {
        best[end] = all;
        starts[end] = start;
      }
    }
  }
  const passes: T[][] = [];
  for (let end = sized.length; end > 0; end = starts[end] as number) {
    passes.push(sized.slice(starts[end], end).map(({ item }) => item));
  }
  return passes.reverse();
}

/** Splits groups whose suffixes are more than a batch. */
function splitGroups(groups: readonly PrefixGroup[], mostTokens: number): PrefixGroup[] {
  return groups.flatMap(({ prefix, rows }) => {
    const parts: InputRow[][] = [];
    let tokens = 0;
    for (const row of rows) {
      const more = row.ids.length - prefix;
      const part = parts.at(-1);
      if (part && tokens + more <= mostTokens) {
        part.push(row);
        tokens += more;
      } else {
        parts.push([row]);
        tokens = more;
      }
    }
    return parts.map((part) => ({ prefix, rows: part }));
  });
}

/** The batches of groups, the longest first: a lack of memory then shows at the start. */
export function scoreBatches(groups: readonly PrefixGroup[], limits: PassLimits): ScoreBatch[] {
  const plain = groups.filter(({ prefix }) => prefix === 0).flatMap(({ rows }) => rows);
  const shared = groups.filter(({ prefix }) => prefix > 0);
  const wholeRow = ({ ids }: InputRow): ItemSize => ({ length: ids.length, after: 0, later: 0 });
  const plainLimits = { ...limits, cacheTokens: Number.POSITIVE_INFINITY };
  const batches: ScoreBatch[] = cutInto(plain, wholeRow, plainLimits, limits.passCost).map(
    (rows) => ({ kind: "plain", passes: [rows] }),
  );
  const parts = splitGroups(shared, mostPasses * limits.tokens);
  const prefixes = cutInto(parts, prefixSize, limits, batchPasses * limits.passCost);
  for (const chosen of prefixes) batches.push(sharedBatch(chosen, limits));
  return batches
    .map((batch) => ({ batch, tokens: tokensOf(batch) }))
    .sort((a, b) => b.tokens - a.tokens)
    .map(({ batch }) => batch);
}

function prefixSize({ prefix, rows }: PrefixGroup): ItemSize {
  const suffixes = rows.map(({ ids }) => ids.length - prefix);
  const later = suffixes.reduce((sum, length) => sum + length, 0);
  return { length: prefix, after: suffixes.reduce((a, b) => Math.max(a, b)), later };
}

function sharedBatch(groups: readonly PrefixGroup[], limits: PassLimits): ScoreBatch {
  const lengthOf = ({ row, group }: Suffix): number =>
    row.ids.length - (groups[group] as PrefixGroup).prefix;
  const suffixes = groups.flatMap(({ rows }, group) => rows.map((row) => ({ row, group })));
  const longest = suffixes.reduce((most, suffix) => Math.max(most, lengthOf(suffix)), 0);
  const capacity = groups.reduce((most, { prefix }) => Math.max(most, prefix), 0) + longest;
  // Every copy of a prefix has the whole capacity, whatever the suffix.
  const rows = Math.min(limits.rows, Math.max(1, Math.floor(limits.cacheTokens / capacity)));
  const passLimits = { ...limits, rows, cacheTokens: Number.POSITIVE_INFINITY };
  const size = (suffix: Suffix): ItemSize => ({ length: lengthOf(suffix), after: 0, later: 0 });
  return { kind: "shared", groups, passes: cutInto(suffixes, size, passLimits, limits.passCost) };
}

/** Tokens that a batch computes, without padding. */
export function tokensOf(batch: ScoreBatch): number {
  if (batch.kind === "plain") {
    return batch.passes[0].reduce((sum, { ids }) => sum + ids.length, 0);
  }
  return batch.groups.reduce(
    (sum, { prefix, rows }) =>
      sum + prefix + rows.reduce((rest, { ids }) => rest + ids.length - prefix, 0),
    0,
  );
}
