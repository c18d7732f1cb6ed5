/** The GPU as a device: memory, copies, waits, errors. Needs LLAMAFORGE_TEST_DEVICE=cuda:0. */
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, it } from "vitest";
import { full, tensor, zeros } from "../../lib/core/create.js";
import { cpu, cuda, defaultDevice } from "../../lib/core/device.js";
import { DeviceError, OutOfMemoryError } from "../../lib/core/errors.js";
import { memory, resetPeakMemory, setMemoryLimit, synchronize } from "../../lib/core/runtime.js";
import { scope } from "../../lib/core/scope.js";
import { empty, type Tensor } from "../../lib/core/tensor.js";
import { add } from "../../lib/ops/binary.js";
import { gather } from "../../lib/ops/gather.js";
import { linear } from "../../lib/ops/linear.js";
import { matmul } from "../../lib/ops/matmul.js";
import { rand, randn } from "../../lib/ops/random.js";
import { sum } from "../../lib/ops/reduce.js";
import { onGpu } from "../support/device.js";

const gpu = defaultDevice();
const bytes = async (x: Tensor) => Buffer.from(await x.toBytes());

describe.runIf(onGpu())("a GPU", () => {
  it("that does not exist is an error", () => {
    expect(() => zeros([2], { device: cuda(99) })).toThrow(DeviceError);
    expect(() => zeros([2], { device: cuda(99) })).toThrow(
      /cuda:99 does not exist: .* sees \d+ GPUs?$/,
    );
  });

  it("does not mix with the CPU in one operation", () => {
    using _ = scope();
    expect(() => add(zeros([2]), zeros([2], { device: cpu }))).toThrow(/device/);
  });

  it.each([1, 3, 1 << 20, (1 << 25) + 7])("keeps %i numbers as they were written", async (n) => {
    using _ = scope();
    const values = new Float32Array(n);
    for (let i = 0; i < n; i++) values[i] = i * 0.5 - 7;
    const x = tensor(values);
    values.fill(NaN); // the copy was taken before
    const back = (await x.toArray()) as Float32Array;
    let wrong = 0;
    for (let i = 0; i < n; i++) if (back[i] !== Math.fround(i * 0.5 - 7)) wrong++;
    expect(wrong).toBe(0);
  });

  it("counts memory in use, its peak, and gives it back", async () => {
    await synchronize();
    resetPeakMemory();
    const before = memory();
    {
      using _ = scope();
      full([1 << 20], 1);
      await synchronize();
      expect(memory().bytes - before.bytes).toBe(4 << 20);
    }
    expect(memory().bytes).toBe(before.bytes);
    expect(memory().peakBytes - before.bytes).toBe(4 << 20);
    expect(memory().tensors).toBe(before.tensors);
  });

  it("runs out of memory with an error that names need and free, and goes on", async () => {
    using _ = scope();
    const x = full([1 << 30, 1 << 8], 1, { dtype: "f32" }); // 1 TiB
    await expect(x.toBytes()).rejects.toThrow(OutOfMemoryError);
    const y = full([1 << 30, 1 << 8], 1);
    await expect(y.toBytes()).rejects.toThrow(
      /\[fill\] no memory for f32 .* needs 1099511627776 bytes more, but cuda:0 has \d+ of \d+ free/,
    );
    expect(await full([], 3).item()).toBe(3);
  });

  it("keeps to a limit", async () => {
    using _ = scope();
    await synchronize();
    setMemoryLimit(memory().bytes + (1 << 20));
    try {
      await expect(full([1 << 20], 1).toBytes()).rejects.toThrow(OutOfMemoryError);
    } finally {
      setMemoryLimit(0);
    }
    expect(await full([], 3).item()).toBe(3);
  });

  it("computes while the event loop turns", async () => {
    using _ = scope();
    const n = 8192;
    const x = randn([n, n], { seed: 1 });
    await synchronize();
    const started = performance.now();
    let y = x;
    for (let i = 0; i < 40; i++) y = matmul(y, x);
    let ticks = 0;
    let done = false;
    const waiting = synchronize().then(() => {
      done = true;
    });
    while (!done) {
      await sleep(1);
      ticks++;
    }
    await waiting;
    const elapsed = performance.now() - started;
    expect(ticks).toBeGreaterThan(10);
    expect(elapsed).toBeGreaterThan(20);
  });

  it("reports an index outside of a tensor at the next wait, once, with its place", async () => {
    using _ = scope();
    const x = zeros([3, 4]);
    const y = gather(x, tensor([[0, 4]], { dtype: "i32" }), 1);
    await expect(y.toArray()).rejects.toThrow(
      "[gather] index 4 at element 1 is outside axis 1 of size 4",
    );
    expect(await sum(x).item()).toBe(0);
  });

  it.each([0, 1, 5, 1024])("draws the CPU's random numbers, from offset %i", async (offset) => {
    using _ = scope();
    for (const dtype of ["f32", "bf16"] as const) {
      const options = { seed: 1234567890123, offset, dtype };
      for (const draw of [
        (device: typeof cpu) => randn([3, 1031], { ...options, device, std: 0.02 }),
        (device: typeof cpu) => rand([3, 1031], { ...options, device, low: -1, high: 3 }),
      ]) {
        expect((await bytes(draw(gpu))).equals(await bytes(draw(cpu)))).toBe(true);
      }
    }
  });

  it("draws the CPU's random numbers, sixteen million of them", async () => {
    for (const dtype of ["f32", "bf16"] as const) {
      using _ = scope();
      const [there, here] = [gpu, cpu].map((device) =>
        randn([(1 << 24) + 5], { seed: 42, dtype, device }),
      );
      expect((await bytes(there as Tensor)).equals(await bytes(here as Tensor))).toBe(true);
    }
  });

  it("gives the same bits for the same product, every time", async () => {
    using _ = scope();
    for (const [rows, inner, columns] of [
      [1, 2048, 5632],
      [512, 2048, 2560],
      [2048, 5632, 2048],
    ] as const) {
      const x = randn([rows, inner], { seed: 1, dtype: "bf16" });
      const w = randn([columns, inner], { seed: 2, dtype: "bf16" });
      const first = await bytes(linear(x, w));
      for (let i = 0; i < 5; i++) expect((await bytes(linear(x, w))).equals(first)).toBe(true);
    }
  });

  it("refuses to give what was never computed", async () => {
    await expect(empty([2]).toBytes()).rejects.toThrow("never computed");
  });
});
