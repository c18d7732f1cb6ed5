import type { InputRow, PrefixGroup } from "./prefix-groups.js";

/** Sizes that a forward pass must not exceed. A single row always makes a pass. */
export interface PassLimits {
  /** Tokens, padding included. */
  readonly tokens: number;
  /** Sequences. */
  readonly rows: number;
  /** Sequences times places of a key/value cache. */
  readonly cacheTokens: number;
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
 * prefixes of groups in one pass and then their rows' suffixes in several. The prefixes have one
 * length, so that every token stands at the place that it has in a whole row: attention then
 * computes it with the same bits.
 */
export type ScoreBatch =
  | { readonly kind: "plain"; readonly passes: readonly [readonly InputRow[]] }
  | {
      readonly kind: "shared";
      /** Tokens of each group that are computed once; a group may share more than these. */
      readonly prefix: number;
      readonly groups: readonly PrefixGroup[];
      readonly passes: readonly (readonly Suffix[])[];
    };

/** Tokens of a batch's suffixes, in passes: bounds the time between two looks at the signal. */
const mostPasses = 4;
/** Cost of a batch with prefixes, in passes: that of the prefixes, and more shorter ones. */
const batchPasses = 4;

/**
 * Cuts a sorted list into parts of the least total cost.
 * @param costsOf costs of the parts that end before `end`: with one item, with two, and so on, up
 *   to the longest part that is allowed
 */
function cutList<T>(items: readonly T[], costsOf: (end: number) => Iterable<number>): T[][] {
  // best[end] is the least cost of the items before `end`; starts[end] begins their last part.
  const best = new Float64Array(items.length + 1);
  const starts = new Int32Array(items.length + 1);
  for (let end = 1; end <= items.length; end++) {
    best[end] = Number.POSITIVE_INFINITY;
    let start = end;
    for (const cost of costsOf(end)) {
      start--;
      const all = (best[start] as number) + cost;
      if (all >= (best[end] as number)) continue;
      best[end] = all;
      starts[end] = start;
    }
  }
  const parts: T[][] = [];
  for (let end = items.length; end > 0; end = starts[end] as number) {
    parts.push(items.slice(starts[end], end));
  }
  return parts.reverse();
}

/** Passes over items, the longest first, with little padding. */
function paddedPasses<T>(
  items: readonly T[],
  lengthOf: (item: T) => number,
  { tokens, rows, passCost }: PassLimits,
): T[][] {
  const sorted = items.toSorted((a, b) => lengthOf(b) - lengthOf(a));
  const lengths = sorted.map(lengthOf);
  return cutList(sorted, function* (end) {
    for (let count = 1; count <= end; count++) {
      const padded = count * (lengths[end - count] as number);
      if (count > 1 && (count > rows || padded > tokens)) return;
      yield padded + passCost;
    }
  });
}

/** Batches of groups. All prefixes of a batch are as long as its shortest one. */
function sharedBatches(groups: readonly PrefixGroup[], limits: PassLimits): ScoreBatch[] {
  const most = mostPasses * limits.tokens;
  const sorted = splitGroups(groups, most).sort((a, b) => b.prefix - a.prefix);
  const lengths = sorted.map(({ rows }) => rows.map(({ ids }) => ids.length));
  const totals = lengths.map((list) => list.reduce((sum, length) => sum + length, 0));
  const longest = lengths.map((list) => list.reduce((a, b) => Math.max(a, b)));
  const parts = cutList(sorted, function* (end) {
    const { prefix } = sorted[end - 1] as PrefixGroup;
    let [suffixes, capacity] = [0, 0];
    for (let count = 1; count <= end; count++) {
      const at = end - count;
      suffixes += (totals[at] as number) - prefix * (lengths[at] as number[]).length;
      capacity = Math.max(capacity, longest[at] as number);
      const fits =
        count <= limits.rows &&
        count * prefix <= limits.tokens &&
        count * capacity <= limits.cacheTokens &&
        suffixes <= most;
      if (count > 1 && !fits) return;
      yield count * prefix + suffixes + batchPasses * limits.passCost;
    }
  });
  return parts.map((part) => sharedBatch(part, limits));
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

function sharedBatch(groups: readonly PrefixGroup[], limits: PassLimits): ScoreBatch {
  const prefix = groups.reduce((least, group) => Math.min(least, group.prefix), Infinity);
  const suffixes = groups.flatMap(({ rows }, group) => rows.map((row) => ({ row, group })));
  const lengthOf = ({ row }: Suffix): number => row.ids.length - prefix;
  // Every copy of a prefix has room for the longest suffix of the batch.
  const capacity = suffixes.reduce((most, { row }) => Math.max(most, row.ids.length), 0);
  const rows = Math.min(limits.rows, Math.max(1, Math.floor(limits.cacheTokens / capacity)));
  const passes = paddedPasses(suffixes, lengthOf, { ...limits, rows });
  return { kind: "shared", prefix, groups, passes };
}

/** The batches of groups, the longest first: a lack of memory then shows at the start. */
export function scoreBatches(groups: readonly PrefixGroup[], limits: PassLimits): ScoreBatch[] {
  const plain = groups.filter(({ prefix }) => prefix === 0).flatMap(({ rows }) => rows);
  const batches: ScoreBatch[] = paddedPasses(plain, ({ ids }) => ids.length, limits).map(
    (rows) => ({ kind: "plain", passes: [rows] }),
  );
  const shared = groups.filter(({ prefix }) => prefix > 0);
  return [...batches, ...sharedBatches(shared, limits)]
    .map((batch) => ({ batch, tokens: tokensOf(batch) }))
    .sort((a, b) => b.tokens - a.tokens)
    .map(({ batch }) => batch);
}

/** Tokens that a batch computes, without padding. */
export function tokensOf(batch: ScoreBatch): number {
  if (batch.kind === "plain") {
    return batch.passes[0].reduce((sum, { ids }) => sum + ids.length, 0);
  }
  const { prefix, groups, passes } = batch;
  const suffixes = passes.flat();
  const all = suffixes.reduce((sum, { row }) => sum + row.ids.length, 0);
  return groups.length * prefix + all - suffixes.length * prefix;
}
