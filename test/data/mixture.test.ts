import { cp, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { beforeAll, describe, expect, it } from "vitest";
import { ArgumentError, DataError } from "../../lib/core/errors.js";
import { positionsForStep } from "../../lib/data/loader.js";
import { Mixture, type MixtureOptions, type MixtureSource } from "../../lib/data/mixture.js";
import { prepare } from "../../lib/prepare/prepare.js";
import { documents, fixtures, quickstart, temporaryFolder, writeFiles } from "./support.js";

const sequenceLength = 16;
let folder: string;
let text: string;
let code: string;

async function prepared(
  name: string,
  files: Record<string, string>,
  tokenizer = quickstart,
): Promise<string> {
  await writeFiles(join(folder, `${name}-in`), files);
  const out = join(folder, name);
  await prepare({ inputs: [join(folder, `${name}-in`)], out, tokenizer, shardTokens: 700 });
  return out;
}

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "llamaforge-mixture-"));
  text = await prepared("text", documents(40));
  code = await prepared(
    "code",
    Object.fromEntries(
      Array.from({ length: 30 }, (_, i) => [
        `${i}.txt`,
        `function f${i}(x) {\n  return x + ${i};\n}\n`.repeat(3),
      ]),
    ),
  );
  return () => rm(folder, { recursive: true });
});

const open = (
  weights?: Record<string, number>,
  options: Partial<MixtureOptions> = {},
): Promise<Mixture> =>
  Mixture.open(weights ?? { [text]: 0.693584, [code]: 0.306416 }, {
    sequenceLength,
    seed: 7,
    ...options,
  });

describe("mixture", () => {
  it("reads at each position the window that it locates", async () => {
    const mixture = await open();
    const rows = await mixture.read(1000, 30);
    for (let row = 0; row < 30; row++) {
      const { source, window } = mixture.locate(1000 + row);
      const into = new Int32Array(sequenceLength + 1);
      await mixture.sources[source]?.dataset.read(window, into);
      expect(rows.subarray(row * 17, (row + 1) * 17)).toEqual(into);
    }
    await mixture.close();
  });

  it("visits every window of a source once an epoch, in another order each time", async () => {
    const mixture = await open();
    const orders = mixture.sources.map(() => new Map<number, number[]>());
    for (let position = 0; position < 6 * mixture.windows; position++) {
      const { source, epoch, window } = mixture.locate(position);
      const epochs = orders[source] as Map<number, number[]>;
      epochs.set(epoch, [...(epochs.get(epoch) ?? []), window]);
    }
    for (const [source, epochs] of orders.entries()) {
      const { windows } = (mixture.sources[source] as MixtureSource).dataset;
      const complete = [...epochs].filter(([, order]) => order.length === windows);
      expect(complete.length).toBeGreaterThanOrEqual(epochs.size - 1);
      expect(complete.length).toBeGreaterThan(2);
      for (const [, order] of complete) expect(new Set(order).size).toBe(windows);
      expect(new Set(complete.map(([, order]) => order.join())).size).toBe(complete.length);
      // Epochs follow one another without a gap.
      expect([...epochs.keys()]).toEqual([...epochs.keys()].map((_, index) => index));
    }
  });

  it("keeps the shares in every prefix, and far out", async () => {
    const mixture = await open();
    const counts = [0, 0];
    for (let position = 0; position < 3000; position++) {
      const { source } = mixture.locate(position);
      counts[source] = (counts[source] as number) + 1;
      for (const [k, { share }] of mixture.sources.entries()) {
        expect(Math.abs((counts[k] as number) - share * (position + 1))).toBeLessThan(0.5 + 1e-9);
      }
    }
    const { source, epoch, window } = mixture.locate(1e12);
    const { windows } = (mixture.sources[source] as MixtureSource).dataset;
    expect(window).toBeLessThan(windows);
    const share = mixture.sources[source]?.share as number;
    expect(Math.abs(epoch * windows - share * 1e12)).toBeLessThan(windows + 1);
    const epochs = mixture.epochsAt(1e12);
    expect(Math.floor(epochs[source] as number)).toBe(epoch);
  });

  it("D4 gives the same sequence for any number of ranks, also when it changes", async () => {
    const mixture = await open();
    const whole = await mixture.read(0, 96);
    const row = sequenceLength + 1;
    fc.assert(
      fc.property(
        fc.array(
          fc.record({
            worldSize: fc.integer({ min: 1, max: 6 }),
            batchSize: fc.integer({ min: 1, max: 5 }),
            steps: fc.integer({ min: 1, max: 4 }),
          }),
          { minLength: 1, maxLength: 5 },
        ),
        (phases) => {
          let startPosition = 0;
          const seen: number[] = [];
          for (const { worldSize, batchSize, steps } of phases) {
            for (let step = 0; step < steps; step++) {
              for (let rank = 0; rank < worldSize; rank++) {
                const { first, count } = positionsForStep(step, {
                  batchSize,
                  rank,
                  worldSize,
                  startPosition,
                });
                for (let i = 0; i < count; i++) seen.push(first + i);
              }
            }
            startPosition += steps * batchSize * worldSize;
          }
          expect(seen).toEqual(seen.map((_, index) => index));
        },
      ),
    );
    // Together the ranks read the windows of a single process.
    const parts: Int32Array[] = [];
    for (const [worldSize, steps, startPosition] of [
      [1, 8, 0],
      [3, 4, 32],
      [2, 2, 80],
    ] as const) {
      for (let step = 0; step < steps; step++) {
        for (let rank = 0; rank < worldSize; rank++) {
          const { first, count } = positionsForStep(step, {
            batchSize: 4,
            rank,
            worldSize,
            startPosition,
          });
          parts.push(await mixture.read(first, count));
        }
      }
    }
    const joined = parts.flatMap((part) => [...part]);
    expect(joined).toEqual([...whole]);
    expect(joined.length).toBe(96 * row);
    await mixture.close();
  });

  it("does not depend on the folders' names or the order they are given in", async () => {
    const elsewhere = join(await temporaryFolder(), "moved");
    await cp(text, elsewhere, { recursive: true });
    const one = await open({ [text]: 3, [code]: 1 });
    const two = await open({ [code]: 1, [elsewhere]: 3 });
    expect(two.fingerprint).toBe(one.fingerprint);
    expect(await two.read(50, 20)).toEqual(await one.read(50, 20));
    await one.close();
    await two.close();
  });

  it("D3 has a fingerprint of all that the sequence depends on", async () => {
    const other = await prepared("other", documents(41));
    const prints = await Promise.all(
      [
        open(),
        open(undefined, { seed: 8 }),
        open(undefined, { sequenceLength: 15 }),
        open(undefined, { split: "validation" }),
        open({ [text]: 0.5, [code]: 0.5 }),
        open({ [other]: 0.693584, [code]: 0.306416 }),
        open({ [text]: 1 }),
      ].map(async (mixture) => (await mixture).fingerprint),
    );
    expect(new Set(prints).size).toBe(prints.length);
    expect((await open()).fingerprint).toBe(prints[0]);
  });

  it("describes its data", async () => {
    const mixture = await open();
    const [first, second] = mixture.sources;
    expect(first?.folder).toBe(text);
    expect((first?.share as number) + (second?.share as number)).toBeCloseTo(1, 12);
    expect(mixture.vocabSize).toBe(4096);
    expect(mixture.windows).toBe(
      (first?.dataset.windows as number) + (second?.dataset.windows as number),
    );
    const expected =
      (first?.share as number) * (first?.dataset.bytesPerToken as number) +
      (second?.share as number) * (second?.dataset.bytesPerToken as number);
    expect(mixture.bytesPerToken).toBeCloseTo(expected, 12);
    expect(mixture.bytesPerToken).toBeGreaterThan(1.5);
    expect(mixture.bytesPerToken).toBeLessThan(6);
    const single = await Mixture.open(text, { sequenceLength });
    expect(single.sources.map(({ share }) => share)).toEqual([1]);
  });

  it("refuses data that does not go together, and bad arguments", async () => {
    const foreign = await prepared("foreign", documents(20), join(fixtures, "llama2"));
    await expect(open({ [text]: 1, [foreign]: 1 })).rejects.toThrow(
      /different tokenizers: tokenizerSha256/,
    );
    const copy = join(await temporaryFolder(), "copy");
    await cp(text, copy, { recursive: true });
    await expect(open({ [text]: 1, [copy]: 1 })).rejects.toThrow(/hold the same tokens/);
    await expect(open({})).rejects.toThrow(ArgumentError);
    await expect(open({ [text]: 0 })).rejects.toThrow(ArgumentError);
    await expect(open({ [text]: 1 }, { seed: -1 })).rejects.toThrow(ArgumentError);
    await expect(open({ [text]: 1 }, { sequenceLength: 100_000 })).rejects.toThrow(DataError);
    await expect(open({ "/nonexistent": 1 })).rejects.toThrow(DataError);
    const mixture = await open();
    expect(() => mixture.locate(-1)).toThrow(ArgumentError);
    expect(() => {
      mixture.position = 0.5;
    }).toThrow(ArgumentError);
  });
});
