import { describe, expect, it } from "vitest";
import { ArgumentError, DataError } from "../../lib/core/errors.js";
import { Loader, type WindowSource } from "../../lib/data/loader.js";

/** Window p holds p·10, p·10+1, …, with T = 3. Records its reads, and can be slow or fail. */
class FakeSource implements WindowSource {
  readonly sequenceLength = 3;
  readonly reads: [number, number][] = [];
  underWay = 0;
  constructor(private readonly before: (position: number) => Promise<void> = async () => {}) {}

  async read(position: number, count: number): Promise<Int32Array> {
    this.reads.push([position, count]);
    this.underWay++;
    try {
      await this.before(position);
    } finally {
      this.underWay--;
    }
    return Int32Array.from(
      { length: count * 4 },
      (_, i) => (position + Math.floor(i / 4)) * 10 + (i % 4),
    );
  }
}

const tick = (ms = 0): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

describe("loader", () => {
  it("gives inputs, and targets shifted by one, with positions", async () => {
    const loader = new Loader(new FakeSource(), { batchSize: 2, startPosition: 5 });
    expect(await loader.next()).toEqual({
      inputs: Int32Array.from([50, 51, 52, 60, 61, 62]),
      firstRow: 5,
      targets: Int32Array.from([51, 52, 53, 61, 62, 63]),
      count: 2,
      position: 5,
      nextPosition: 7,
    });
    expect(await loader.next()).toMatchObject({ position: 7, nextPosition: 9 });
    await loader.close();
  });

  it("gives each rank its part of every global micro-batch", async () => {
    for (const rank of [0, 1, 2]) {
      const loader = new Loader(new FakeSource(), {
        batchSize: 2,
        rank,
        worldSize: 3,
        startPosition: 100,
      });
      for (const step of [0, 1, 2]) {
        const batch = await loader.next();
        expect(batch.inputs[0]).toBe((100 + step * 6 + rank * 2) * 10);
        expect(batch).toMatchObject({ position: 100 + step * 6, nextPosition: 106 + step * 6 });
      }
      await loader.close();
    }
  });

  it("reads ahead, and never further than it was told", async () => {
    const source = new FakeSource();
    const loader = new Loader(source, { batchSize: 1, prefetch: 3 });
    await tick(5);
    expect(source.reads.length).toBe(3);
    for (let taken = 1; taken <= 10; taken++) {
      await loader.next();
      await tick();
      expect(source.reads.length).toBe(3 + taken);
    }
    await loader.close();
    await tick(5);
    expect(source.reads.length).toBe(13);
  });

  it("keeps the order when later reads finish first", async () => {
    const source = new FakeSource((position) => tick(position % 2 === 0 ? 15 : 1));
    const loader = new Loader(source, { batchSize: 1, prefetch: 4 });
    for (let position = 0; position < 8; position++) {
      expect((await loader.next()).inputs[0]).toBe(position * 10);
    }
    await loader.close();
  });

  it("counts the time waited for storage, and only that", async () => {
    const loader = new Loader(new FakeSource(() => tick(60)), { batchSize: 1, prefetch: 1 });
    await loader.next();
    const first = loader.waitedMs;
    expect(first).toBeGreaterThan(40);
    await tick(200); // the consumer works; the next micro-batch is ready meanwhile
    await loader.next();
    expect(loader.waitedMs - first).toBeLessThan(40);
    await loader.close();
  });

  it("D7 reports storage that hangs, and goes on when it comes back", async () => {
    const reports: number[] = [];
    const loader = new Loader(new FakeSource(() => tick(120)), {
      batchSize: 1,
      prefetch: 1,
      slowAfterMs: 25,
      onSlow: (waitedMs) => reports.push(waitedMs),
    });
    await loader.next();
    expect(reports.length).toBeGreaterThanOrEqual(2);
    expect(reports[1] as number).toBeGreaterThan(reports[0] as number);
    await loader.close();
  });

  it("reports an error of a read at the micro-batch that needs it, and stays failed", async () => {
    const source = new FakeSource(async (position) => {
      if (position === 2) throw new DataError("[data] train-00000.bin ends at byte 20");
    });
    const loader = new Loader(source, { batchSize: 1, prefetch: 4 });
    await tick(5);
    await loader.next();
    await loader.next();
    await expect(loader.next()).rejects.toThrow(/train-00000\.bin ends at byte 20/);
    await expect(loader.next()).rejects.toThrow(DataError);
    await loader.close();
  });

  it("closes only when no read is under way", async () => {
    const source = new FakeSource(() => tick(30));
    const loader = new Loader(source, { batchSize: 1, prefetch: 5 });
    await tick();
    expect(source.underWay).toBe(5);
    await loader.close();
    expect(source.underWay).toBe(0);
    await expect(loader.next()).rejects.toThrow(ArgumentError);
    await loader.close();
  });

  it.each([
    { batchSize: 0 },
    { batchSize: 1, prefetch: 0 },
    { batchSize: 1, startPosition: -1 },
    { batchSize: 1, rank: 1 },
    { batchSize: 1, rank: 0, worldSize: 0 },
    { batchSize: 1.5 },
  ])("refuses %j", (options) => {
    expect(() => new Loader(new FakeSource(), options)).toThrow(ArgumentError);
  });
});
