import { afterEach, describe, expect, it } from "vitest";
import { full, tensor, zeros } from "../../lib/core/create.js";
import { defaultDevice } from "../../lib/core/device.js";
import { ArgumentError, DisposedError } from "../../lib/core/errors.js";
import { type Recording, record } from "../../lib/core/recording.js";
import { memory, synchronize } from "../../lib/core/runtime.js";
import { keep, scope } from "../../lib/core/scope.js";
import type { Tensor } from "../../lib/core/tensor.js";
import { add, embedding, matmul, mul, softmax } from "../../lib/ops/index.js";

const made: Recording[] = [];
const recorded = (fn: () => void): Recording => {
  const recording = record(defaultDevice(), fn);
  made.push(recording);
  return recording;
};
afterEach(() => {
  for (const recording of made.splice(0)) recording.dispose();
});

describe("a recorded stretch", () => {
  it("runs nothing until it is replayed, and then on the inputs of the moment", async () => {
    const x = zeros([3]);
    let y!: Tensor;
    const recording = recorded(() => {
      y = mul(add(x, 1), 2);
    });
    for (const value of [1, 5, 7, 9]) {
      x.native.write(new Float32Array(3).fill(value));
      recording.replay();
      expect([...(await y.toArray())]).toEqual(Array(3).fill((value + 1) * 2));
    }
    expect(recording.length).toBeGreaterThanOrEqual(2);
  });

  it("has the results of the operations alone, with scratch memory and intermediate results", async () => {
    const table = tensor(
      Float32Array.from({ length: 64 * 32 }, (_, i) => Math.sin(i)),
      {
        shape: [64, 32],
      },
    );
    const ids = zeros([5], { dtype: "i32" });
    const compute = () => {
      let h = embedding(ids, table);
      for (let i = 0; i < 6; i++) h = softmax(matmul(matmul(h, table.view([32, 64])), table));
      return h;
    };
    let y!: Tensor;
    const recording = recorded(() => {
      y = scope(() => keep(compute()));
    });
    for (let run = 0; run < 5; run++) {
      ids.native.write(Int32Array.from({ length: 5 }, (_, i) => (i * 7 + run * 11) % 64));
      recording.replay();
      const replayed = y.toArray();
      // Other work between takes memory that the recording must not share.
      const noise = Array.from({ length: 20 }, (_, i) => full([1000 * (i + 1)], Number.NaN));
      expect(await replayed).toEqual(await compute().toArray());
      for (const tensor of noise) tensor.dispose();
    }
  });

  it("names the operation that fails, also in later runs, and works again after", async () => {
    const table = zeros([4, 2]);
    const ids = zeros([1], { dtype: "i32" });
    let y!: Tensor;
    const recording = recorded(() => {
      y = embedding(ids, table);
    });
    for (const id of [0, 9, 1, 2, 9, 9, 3, 0]) {
      ids.native.write(Int32Array.of(id));
      recording.replay();
      const read = y.toArray();
      if (id < 4) expect([...(await read)]).toEqual([0, 0]);
      else await expect(read).rejects.toThrow(/\[embeddingForward\] .*9/);
    }
  });

  it("refuses copies from and to the host, waits, and another recording", async () => {
    const x = zeros([2]);
    const device = defaultDevice();
    expect(() => recorded(() => tensor([1, 2]))).toThrow(ArgumentError);
    expect(() => recorded(() => void recorded(() => {}))).toThrow(/record/);
    expect(() => recorded((() => Promise.reject(new Error("late"))) as () => void)).toThrow(
      /returns at once/,
    );
    let read!: Promise<unknown>;
    let wait!: Promise<unknown>;
    recorded(() => {
      read = x.toArray();
      wait = synchronize(device);
      for (const promise of [read, wait]) promise.catch(() => {});
    });
    await expect(read).rejects.toThrow(/\[read\] a recording consists of operations/);
    await expect(wait).rejects.toThrow(/\[synchronize\] a recording consists of operations/);
    expect([...(await add(x, 1).toArray())]).toEqual([1, 1]);
  });

  it("gives its memory back when it is disposed, and is then over", async () => {
    await synchronize();
    const before = memory().bytes;
    const recording = scope(() => {
      const x = full([1 << 16], 1);
      return record(defaultDevice(), () => void scope(() => void mul(add(x, 1), 2)));
    });
    for (let i = 0; i < 3; i++) recording.replay();
    await synchronize();
    expect(memory().bytes).toBeGreaterThan(before + (1 << 18));
    recording.dispose();
    await synchronize();
    expect(memory().bytes).toBe(before);
    expect(() => recording.replay()).toThrow(DisposedError);
  });
});
