import { constants, PerformanceObserver } from "node:perf_hooks";
import { describe, expect, test } from "vitest";
import { full, tensor, zeros } from "../../lib/core/create.js";
import { DisposedError } from "../../lib/core/errors.js";
import { memory, ready, resetPeakMemory, synchronize } from "../../lib/core/runtime.js";
import { keep, scope } from "../../lib/core/scope.js";
import type { Tensor } from "../../lib/core/tensor.js";
import { add, exp, mul, sum } from "../../lib/ops/index.js";
import { settled } from "../support/settled.js";

const wait = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

describe("scope", () => {
  test("frees what was made inside at the end of the block, and nothing else", () => {
    const outer = zeros([2]);
    let inner: Tensor;
    {
      using _ = scope();
      inner = zeros([2]);
    }
    expect(inner.disposed).toBe(true);
    expect(outer.disposed).toBe(false);
    outer.dispose();
  });

  test("holds across await, on the continuation as well", async () => {
    let before: Tensor;
    let after: Tensor;
    {
      using _ = scope();
      before = zeros([2]);
      await wait(2);
      expect(before.disposed).toBe(false);
      after = zeros([2]);
      await before.item().catch(() => {});
    }
    expect([before.disposed, after.disposed]).toEqual([true, true]);
  });

  test("gives out the tensors that its function returns: alone, in arrays and in objects", async () => {
    const one = scope(() => zeros([1]));
    const [two, rest] = scope(() => [zeros([1]), { three: zeros([1]) }] as const);
    const later = await scope(async () => {
      const temporary = zeros([1]);
      await wait(1);
      return add(temporary, 1);
    });
    expect([one, two, rest.three, later].map((x) => x.disposed)).toEqual([
      false,
      false,
      false,
      false,
    ]);
    expect(await later.item()).toBe(1);
    for (const x of [one, two, rest.three, later]) x.dispose();
  });

  test("keeps the graph of what it hands out, and frees the rest of it", async () => {
    const x = tensor([1, 2], { requiresGrad: true });
    const before = memory().tensors;
    const one = scope(() => {
      const y = exp(exp(x));
      exp(exp(exp(exp(x)))); // each saves its input
      return scope(() => sum(mul(y, y)));
    });
    // The result, and two tensors that the inner exp and the square saved besides x.
    expect(memory().tensors).toBe(before + 3);
    one.backward();
    one.dispose();
    expect(memory().tensors).toBe(before + 1); // the gradient
    const slope = 2 * Math.exp(2 * Math.E) * Math.E;
    expect((await x.grad?.toArray())?.[0]).toBeCloseTo(slope, 1);
    x.dispose();
  });

  test("keep moves a tensor to the scope around, which then frees it", () => {
    let kept: Tensor;
    {
      using _outer = scope();
      {
        using _inner = scope();
        kept = keep(zeros([3]));
      }
      expect(kept.disposed).toBe(false);
    }
    expect(kept.disposed).toBe(true);
  });

  test("frees when its function throws or rejects", async () => {
    const seen: Tensor[] = [];
    expect(() =>
      scope(() => {
        seen.push(zeros([1]));
        throw new Error("stop");
      }),
    ).toThrow("stop");
    await expect(
      scope(async () => {
        seen.push(zeros([1]));
        await wait(1);
        throw new Error("later");
      }),
    ).rejects.toThrow("later");
    expect(seen.map((x) => x.disposed)).toEqual([true, true]);
  });

  test("two loops side by side never free each other's tensors", async () => {
    async function loop(start: number): Promise<number> {
      let total = 0;
      for (let turn = 0; turn < 20; turn++) {
        using _ = scope();
        const x = full([4], start + turn);
        await wait((start * 7 + turn * 3) % 4);
        const y = mul(x, 2);
        await wait((start + turn) % 3);
        total += await sum(y).item();
        expect([x.disposed, y.disposed]).toEqual([false, false]);
      }
      return total;
    }
    const expected = (start: number) => 8 * (20 * start + 190);
    await settled();
    const before = memory().tensors;
    expect(await Promise.all([loop(1), loop(2), loop(3)])).toEqual([1, 2, 3].map(expected));
    expect(memory().tensors).toBe(before);
  });

  test("an operation in flight outlives its tensors' scope", async () => {
    const reading = scope(() => {
      let x = full([1 << 16], 1);
      for (let i = 0; i < 50; i++) x = add(x, 1);
      return { values: x.toArray() };
    });
    expect((await reading.values)[100]).toBe(51);
  });
});

describe("disposal", () => {
  test("use afterwards is an error that names the operation that made it and the cure", async () => {
    const x = add(zeros([2, 3]), 1);
    x.dispose();
    x.dispose();
    expect(() => add(x, 1)).toThrow(DisposedError);
    expect(() => add(x, 1)).toThrow(/\[add\].*\[2,3\] made by add.*keep/);
    await expect(x.item()).rejects.toThrow(DisposedError);
    await expect(x.toArray()).rejects.toThrow(DisposedError);
    expect(() => x.view([6])).toThrow(DisposedError);
    expect(() => x.backward()).toThrow(DisposedError);
  });

  test("`using` disposes one tensor", () => {
    let seen: Tensor;
    {
      using x = tensor([1, 2]);
      seen = x;
    }
    expect(seen.disposed).toBe(true);
  });

  test("memory is freed in the order of the stream, not when the handle goes", async () => {
    await settled();
    const before = memory().bytes;
    const x = full([1 << 18], 3);
    const y = add(x, 1);
    x.dispose();
    expect((await y.toArray())[7]).toBe(4);
    await synchronize();
    expect(memory().bytes - before).toBe(4 << 18);
    y.dispose();
    await synchronize();
    expect(memory().bytes).toBeLessThanOrEqual(before);
  });
});

describe("memory and V8's garbage collector", () => {
  test("tensors that a program forgets outside every scope do not fill memory", async () => {
    await settled();
    resetPeakMemory();
    const before = memory().bytes;
    const bytes = 32 << 20;
    for (let i = 0; i < 256; i++) {
      zeros([bytes / 4]); // 8 GiB in all
      if (i % 4 === 3) await synchronize();
      // Finalizers run when the event loop turns.
      await ready();
    }
    expect(memory().peakBytes - before).toBeLessThan(3 * 2 ** 30);
    await settled();
    expect(memory().bytes).toBeLessThanOrEqual(before);
  });

  test("scopes free without a collection, however much they hold", async () => {
    await settled();
    const counts = { major: 0 };
    const observer = new PerformanceObserver((list) => {
      for (const entry of list.getEntries()) {
        const { kind } = (entry as unknown as { detail: { kind: number } }).detail;
        if (kind === constants.NODE_PERFORMANCE_GC_MAJOR) counts.major++;
      }
    });
    observer.observe({ entryTypes: ["gc"] });
    // 10 GB in tensors of short life. When V8 counted them as external memory, it collected every
    // 64 MB.
    for (let step = 0; step < 100; step++) {
      scope(() => {
        let x = zeros([1 << 20]);
        for (let i = 0; i < 24; i++) x = mul(x, 1);
      });
      await synchronize();
    }
    await wait(20);
    observer.disconnect();
    expect(counts.major).toBeLessThan(5);
  });
});
