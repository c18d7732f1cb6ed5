import type { TokenRequest } from "./token-requests.js";

/** Logits that a request needs from a row. */
export interface RowUse {
  /** Request whose tokens these are. */
  readonly request: TokenRequest;
  /** Indices of the equal requests that this one stands for. */
  readonly indices: readonly number[];
}

/**
 * Token ids that the model reads once for one or several requests: all whose own ids are the row's,
 * or the first of them. Choices of one token have one row.
 */
export interface InputRow {
  readonly ids: Int32Array;
  readonly uses: readonly RowUse[];
  /** First position whose logits a request needs. A shared prefix ends before it. */
  readonly firstScored: number;
}

/** Rows that begin alike. */
export interface PrefixGroup {
  /** Number of tokens that are computed once for all rows; 0 for a row that shares nothing. */
  readonly prefix: number;
  readonly rows: readonly InputRow[];
}

const readIds = ({ tokens }: TokenRequest): Int32Array => tokens.subarray(0, -1);

function bytesOf(ids: Int32Array): Buffer {
  return Buffer.from(ids.buffer, ids.byteOffset, ids.byteLength);
}

/** Length of the common beginning. */
function commonLength(a: Int32Array, b: Int32Array): number {
  const most = Math.min(a.length, b.length);
  let length = 0;
  while (length < most && a[length] === b[length]) length++;
  return length;
}

/**
 * The rows of requests, in an order that puts equal beginnings together. Any order of bytes does,
 * as long as a text comes directly before its continuations.
 */
export function inputRows(requests: readonly TokenRequest[]): InputRow[] {
  const bytes = requests.map((request) => bytesOf(readIds(request)));
  const last = ({ tokens }: TokenRequest): number => tokens.at(-1) as number;
  const order = requests
    .map((_, index) => index)
    .sort((i, j) => {
      const [a, b] = [requests[i] as TokenRequest, requests[j] as TokenRequest];
      const byIds = Buffer.compare(bytes[i] as Buffer, bytes[j] as Buffer);
      return byIds || last(a) - last(b) || a.scored - b.scored || i - j;
    });
  const rows: { ids: Int32Array; uses: { request: TokenRequest; indices: number[] }[] }[] = [];
  // The longest of the texts that continue each other comes last, and makes the row.
  for (const index of order.toReversed()) {
    const request = requests[index] as TokenRequest;
    const ids = readIds(request);
    const row = rows.at(-1);
    if (!row || commonLength(ids, row.ids) < ids.length) {
      rows.push({ ids, uses: [{ request, indices: [index] }] });
      continue;
    }
    const use = row.uses.at(-1) as (typeof row.uses)[number];
    const { tokens, scored } = use.request;
    const equal = tokens.length === request.tokens.length && last(use.request) === last(request);
    if (equal && scored === request.scored) use.indices.push(index);
    else row.uses.push({ request, indices: [index] });
  }
  return rows.reverse().map(({ ids, uses }) => {
    const startOf = ({ request }: RowUse): number => request.tokens.length - 1 - request.scored;
    const firstScored = uses.reduce((least, use) => Math.min(least, startOf(use)), ids.length);
    return { ids, uses, firstScored };
  });
}

/** Rows first..end-1 in their order, and the cheapest way to compute them. */
interface Branch {
  /** Length of the rows' common beginning. */
  readonly depth: number;
  readonly first: number;
  end: number;
  /** Number of tokens in all rows. */
  tokens: number;
  /** Longest prefix that all rows may share. */
  limit: number;
  readonly children: Branch[];
  /** Cost of the children, each in its cheapest way. */
  apart: number;
  /** Whether one shared prefix for all rows costs less than the children. */
  shared: boolean;
}

/**
 * Share of its prefix that a row costs, in tokens: copies of keys and values. Estimated from the
 * bytes that a 1.1B model moves on a GPU.
 */
const prefixShare = 1 / 40;
/** Cost of a group besides its tokens, in tokens: padding. */
const groupCost = 8;

/**
 * Groups of rows that share a prefix, such that few tokens are computed. The candidates are the
 * nodes of the tree of common beginnings; each is taken as one group if this costs less than its
 * parts.
 * @param rows in the order of `inputRows`
 */
export function prefixGroups(rows: readonly InputRow[]): PrefixGroup[] {
  const groups: PrefixGroup[] = [];
  if (rows.length === 0) return groups;
  const pending = [treeOf(rows)];
  for (let branch = pending.pop(); branch; branch = pending.pop()) {
    if (branch.shared) {
      const prefix = Math.min(branch.depth, branch.limit);
      groups.push({ prefix, rows: rows.slice(branch.first, branch.end) });
    } else if (branch.children.length === 0) {
      groups.push({ prefix: 0, rows: rows.slice(branch.first, branch.end) });
    } else {
      for (const child of branch.children.toReversed()) pending.push(child);
    }
  }
  return groups;
}

/** Builds the tree from left to right; the open branches are those of the newest row. */
function treeOf(rows: readonly InputRow[]): Branch {
  const open: Branch[] = [branchAt(0, 0)];
  const top = (): Branch => open.at(-1) as Branch;
  let newest: Branch | null = null;
  for (const [index, row] of rows.entries()) {
    if (newest) {
      const depth = commonLength(row.ids, (rows[index - 1] as InputRow).ids);
      while (top().depth > depth) {
        const closed = open.pop() as Branch;
        add(closed, newest);
        newest = close(closed);
      }
      if (top().depth < depth) open.push(branchAt(depth, newest.first));
      add(top(), newest);
    }
    newest = leaf(row, index);
  }
  while (newest) {
    const closed = open.pop();
    if (!closed) break;
    add(closed, newest);
    newest = close(closed);
  }
  return newest ?? branchAt(0, 0);
}

function branchAt(depth: number, first: number): Branch {
  const limit = Number.POSITIVE_INFINITY;
  return { depth, first, end: first, tokens: 0, limit, children: [], apart: 0, shared: false };
}

function leaf({ ids, firstScored }: InputRow, index: number): Branch {
  const { length } = ids;
  const branch = branchAt(length, index);
  return Object.assign(branch, {
    end: index + 1,
    tokens: length,
    // Attention of a single token has a kernel of its own, which rounds in another order. So two
    // tokens of a row are left.
    limit: Math.max(0, Math.min(firstScored, length - 2)),
    apart: length,
  });
}

function add(branch: Branch, child: Branch): void {
  branch.children.push(child);
  branch.end = child.end;
  branch.tokens += child.tokens;
  branch.limit = Math.min(branch.limit, child.limit);
  branch.apart += child.apart;
}

/** Decides whether the branch is one group. The cost of the cheaper way is then its `apart`. */
function close(branch: Branch): Branch {
  const prefix = Math.min(branch.depth, branch.limit);
  const rows = branch.end - branch.first;
  const together = branch.tokens - prefix * (rows - 1) + rows * prefix * prefixShare + groupCost;
  if (prefix > 0 && together < branch.apart) {
    branch.apart = together;
    branch.shared = true;
  }
  return branch;
}
