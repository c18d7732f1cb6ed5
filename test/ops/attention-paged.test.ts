import { describe, expect, it } from "vitest";
import { tensor, zeros } from "../../lib/core/create.js";
import { ArgumentError, DTypeError, ShapeError } from "../../lib/core/errors.js";
import { scope } from "../../lib/core/scope.js";
import type { Tensor } from "../../lib/core/tensor.js";
import { attentionPaged } from "../../lib/ops/attention.js";
import { rope, ropeTable } from "../../lib/ops/rope.js";
import { causalAttention, packedHeads } from "../support/attention-reference.js";
import { toTensor } from "../support/float-ops.js";
import { type Reference, random, relativeError, tolerances } from "../support/reference.js";

const options = { heads: 4, kvHeads: 2 };
const page = 32;

/** A token of a sequence: its row of qkv is row `position` of the sequence's. */
interface Token {
  sequence: number;
  position: number;
}

/** A cache of 12 pages for sequences whose pages lie in a mixed-up order, and calls on it. */
function pagedCache(sequences: readonly Reference[], size: number, dtype: "f32" | "bf16") {
  const table = Int32Array.of(7, 2, 9, 5, 0, 11, 3, 8, 1, 10, 4, 6);
  const pages = zeros([12, 2, options.kvHeads, page, size], { dtype });
  const width = 8 * size;
  return async (tokens: readonly Token[], firstKey?: (token: Token) => number) => {
    using _ = scope();
    const rows = tokens.flatMap(({ sequence, position }) => [
      ...(sequences[sequence] as Reference).data.slice(position * width, (position + 1) * width),
    ]);
    const ids = (of: (token: Token) => number) =>
      tensor(Int32Array.from(tokens, of), { shape: [1, tokens.length] });
    const qkv = toTensor(
      { data: Float64Array.from(rows), shape: [1, tokens.length, width] },
      dtype,
    );
    const places = {
      table: tensor(table, { shape: [4, 3] }),
      sequences: ids(({ sequence }) => sequence),
      positions: ids(({ position }) => position),
      ...(firstKey && { firstKey: ids(firstKey) }),
    };
    const values = await attentionPaged(qkv, pages, places, options).toArray();
    const each = 4 * size;
    return tokens.map((_, n) => [...values.slice(n * each, (n + 1) * each)]);
  };
}

const upTo = (sequence: number, from: number, to: number): Token[] =>
  Array.from({ length: to - from }, (_, i) => ({ sequence, position: from + i }));

describe.each(["f32", "bf16"] as const)("attention over pages in %s", (dtype) => {
  it.each([64, 12])("equals plain attention of each sequence, head size %i", async (size) => {
    const lengths = [70, 1, 96, 33];
    const sequences = lengths.map((length, i) => packedHeads(1, length, options, size, i, dtype));
    const call = pagedCache(sequences, size, dtype);
    const results = lengths.map((length) => Array<number[]>(length));
    const steps = [
      [...upTo(0, 0, 40), ...upTo(1, 0, 1), ...upTo(2, 0, 20)],
      [...upTo(2, 20, 95), ...upTo(0, 40, 41)],
      [...upTo(3, 0, 33), ...upTo(2, 95, 96), ...upTo(0, 41, 70)],
    ];
    for (const tokens of steps) {
      const values = await call(tokens);
      for (const [n, { sequence, position }] of tokens.entries()) {
        (results[sequence] as number[][])[position] = values[n] as number[];
      }
    }
    for (const [i, sequence] of sequences.entries()) {
      const expected = causalAttention(sequence, options, null).o;
      const got = (results[i] as number[][]).flat();
      expect(relativeError(got, expected.data)).toBeLessThan(tolerances[dtype].forward);
    }
  });

  it("has equal bits alone and beside others, in one call and token by token", async () => {
    const sequences = [70, 60, 96].map((n, i) => packedHeads(1, n, options, 64, i, dtype));
    const together = pagedCache(sequences, 64, dtype);
    const mixed = await together([...upTo(0, 0, 70), ...upTo(1, 0, 60), ...upTo(2, 0, 96)]);
    const alone = pagedCache(sequences, 64, dtype);
    const separate: number[][] = [];
    for (const token of upTo(0, 0, 70)) separate.push(...(await alone([token])));
    expect(mixed.slice(0, 70)).toEqual(separate);
  });

  it("sees no key before the first one", async () => {
    const sequences = [packedHeads(1, 90, options, 64, 4, dtype)];
    const window = ({ position }: Token) => Math.max(0, position - 49);
    const values = await pagedCache(sequences, 64, dtype)(upTo(0, 0, 90), window);
    const first = Int32Array.from(upTo(0, 0, 90), window);
    const expected = causalAttention(sequences[0] as Reference, options, null, first).o;
    expect(relativeError(values.flat(), expected.data)).toBeLessThan(tolerances[dtype].forward);
  });
});

describe.each(["f32", "bf16"] as const)("attention over pages in %s, one token each", (dtype) => {
  // Lengths around the 64 keys of a warp and the 256 of a block; 6 query heads of one kv head and 2.
  it.each([
    [64, 4, 2],
    [128, 6, 1],
    [24, 2, 2],
  ])(
    "has the bits of tokens of named sequences, turned by rope, head size %i",
    async (size, heads, kvHeads) => {
      using _ = scope();
      const lengths = [1, 63, 64, 65, 255, 256, 257, 600];
      const width = (heads + 2 * kvHeads) * size;
      const angles = ropeTable(640, size, 10_000);
      const table = tensor(
        Int32Array.from({ length: 8 * 20 }, (_, i) => (i * 7) % 160),
        { shape: [8, 20] },
      );
      const before = random([160, 2, kvHeads, 32, size], 1, { dtype });
      const qkv = toTensor(random([1, 8, width], 2, { dtype }), dtype);
      const ids = (values: number[]) => tensor(Int32Array.from(values), { shape: [1, 8] });
      const positions = ids(lengths.map((length) => length - 1));
      const sequences = ids([0, 1, 2, 3, 4, 5, 6, 7]);
      const first = ids(lengths.map((length) => Math.max(0, length - 300)));
      for (const firstKey of [undefined, first]) {
        const [own, others] = [1, 2].map(() => toTensor(before, dtype)) as [Tensor, Tensor];
        const places = { table, positions, firstKey };
        const each = attentionPaged(qkv, own, places, { heads, kvHeads, angles });
        const rotated = { heads: heads + 2 * kvHeads, rotatedHeads: heads + kvHeads, positions };
        const turned = rope(qkv, angles, rotated);
        const named = attentionPaged(turned, others, { ...places, sequences }, { heads, kvHeads });
        expect(await each.toArray()).toEqual(await named.toArray());
        const pages = await Promise.all([own, others].map((cache) => cache.toBytes()));
        expect(
          Buffer.compare(...(pages.map((bytes) => Buffer.from(bytes)) as [Buffer, Buffer])),
        ).toBe(0);
      }
    },
  );
});

describe("attention over pages refuses", () => {
  const ids = (...values: number[]) =>
    tensor(Int32Array.from(values), { shape: [1, values.length] });
  const call = (more: { table?: number[]; sequences?: number[]; positions?: number[] } = {}) => {
    const { table = [0, 1], sequences = [0, 0], positions = [0, 1] } = more;
    const places = {
      table: tensor(Int32Array.from(table), { shape: [1, 2] }),
      sequences: ids(...sequences),
      positions: ids(...positions),
    };
    return attentionPaged(zeros([1, 2, 32]), zeros([2, 2, 2, 32, 4]), places, options).toArray();
  };

  it.each([
    ["a sequence", { sequences: [0, 1] }, "sequence 1 of token 1 is outside the table's 0..0"],
    [
      "a position",
      { positions: [64, 0] },
      "position 64 of token 0 is outside its sequence's 0..63",
    ],
    ["a position below 0", { positions: [0, -1] }, "position -1 of token 1 is outside"],
    ["a page", { table: [2, 0] }, "page 2 of sequence 0 is outside the cache's 0..1"],
  ])("%s outside of the tensors", async (_name, more, message) => {
    await expect(call(more)).rejects.toMatchObject({
      code: "ERR_POSITION",
      message: expect.stringContaining(message),
    });
    expect((await call()).length).toBe(32);
  });

  it("arguments of other shapes and kinds", () => {
    const places = { table: ids(0, 1), sequences: ids(0, 0), positions: ids(0, 1) };
    const pages = zeros([2, 2, 2, 32, 4]);
    const qkv = zeros([1, 2, 32]);
    for (const [wrong, kind] of [
      [() => attentionPaged(qkv, zeros([2, 2, 4, 32, 4]), places, options), ShapeError],
      [
        () => attentionPaged(qkv, zeros([2, 2, 2, 32, 4], { dtype: "bf16" }), places, options),
        DTypeError,
      ],
      [() => attentionPaged(qkv, pages, { ...places, positions: ids(0) }, options), ShapeError],
      [() => attentionPaged(qkv, pages, { ...places, table: zeros([1, 2]) }, options), DTypeError],
      [
        () => attentionPaged(qkv, pages, { ...places, tables: ids(0) } as never, options),
        ArgumentError,
      ],
      [() => attentionPaged(qkv, pages, undefined as never, options), ArgumentError],
    ] as const) {
      expect(wrong).toThrow(kind);
    }
  });
});
