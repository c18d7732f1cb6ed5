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

/** Share of the longest row below which a row is too short for a pass, unless it is small. */
const shortestShare = 0.75;
/** Share of a pass's tokens up to which it takes rows of any length. */
const smallShare = 1 / 8;
/** Tokens of suffixes in a batch, in passes: bounds the time between two looks at the signal. */
const mostPasses = 4;

/**
 * Cuts a list, longest first, into passes with little padding.
 * @param allows whether the items from `start` to `end` may be one pass
 */
function cutInto<T>(
  items: readonly T[],
  lengthOf: (item: T) => number,
  limits: PassLimits,
  allows: (start: number, end: number, longest: number) => boolean = () => true,
): T[][] {
  const sorted = items.toSorted((a, b) => lengthOf(b) - lengthOf(a));
  const passes: T[][] = [];
  let start = 0;
  for (let end = 1; end <= sorted.length; end++) {
    const longest = lengthOf(sorted[start] as T);
    const count = end + 1 - start;
    const next = sorted[end];
    const fits =
      next !== undefined &&
      count <= limits.rows &&
      count * longest <= limits.tokens &&
      (lengthOf(next) >= shortestShare * longest ||
        (count - 1) * longest <= smallShare * limits.tokens) &&
      allows(start, end + 1, longest);
    if (fits) continue;
    passes.push(sorted.slice(start, end));
    start = end;
  }
  return passes;
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

const longestSuffix = ({ prefix, rows }: PrefixGroup): number =>
  Math.max(...rows.map(({ ids }) => ids.length - prefix));

/** The batches of groups, the longest first: a lack of memory then shows at the start. */
export function scoreBatches(groups: readonly PrefixGroup[], limits: PassLimits): ScoreBatch[] {
  const plain = groups.filter(({ prefix }) => prefix === 0).flatMap(({ rows }) => rows);
  const shared = groups.filter(({ prefix }) => prefix > 0);
  const batches: ScoreBatch[] = cutInto(plain, ({ ids }) => ids.length, limits).map((rows) => ({
    kind: "plain",
    passes: [rows],
  }));
  const mostTokens = mostPasses * limits.tokens;
  const parts = splitGroups(shared, mostTokens).map((group) => ({
    group,
    suffix: longestSuffix(group),
    tokens: group.rows.reduce((sum, { ids }) => sum + ids.length - group.prefix, 0),
  }));
  // Longest prefixes first, as `cutInto` needs it for `allows`.
  parts.sort((a, b) => b.group.prefix - a.group.prefix);
  const allows = (start: number, end: number, prefix: number): boolean => {
    const chosen = parts.slice(start, end);
    const suffix = Math.max(...chosen.map((part) => part.suffix));
    const tokens = chosen.reduce((sum, part) => sum + part.tokens, 0);
    return (
      tokens <= mostTokens &&
      prefix + suffix <= limits.contextLength &&
      (end - start) * (prefix + suffix) <= limits.cacheTokens
    );
  };
  for (const chosen of cutInto(parts, ({ group }) => group.prefix, limits, allows)) {
    batches.push(sharedBatch(chosen, limits));
  }
  return batches.sort((a, b) => costOf(b) - costOf(a));
}

function sharedBatch(
  parts: readonly { group: PrefixGroup; suffix: number }[],
  limits: PassLimits,
): ScoreBatch {
  const groups = parts.map(({ group }) => group);
  const capacity = (groups[0] as PrefixGroup).prefix + Math.max(...parts.map((p) => p.suffix));
  const suffixes = groups.flatMap(({ rows }, group) => rows.map((row) => ({ row, group })));
  const lengthOf = ({ row, group }: Suffix): number =>
    row.ids.length - (groups[group] as PrefixGroup).prefix;
  const allows = (start: number, end: number): boolean =>
    (end - start) * capacity <= limits.cacheTokens;
  return { kind: "shared", groups, passes: cutInto(suffixes, lengthOf, limits, allows) };
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

const costOf = tokensOf;
