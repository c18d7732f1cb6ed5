// docs/faults.md, row A9: calls from within calls, and values with side effects. Each is defined or
// refused, and none leaks.
import { expect, test } from "vitest";
import { differentiable, grad, withGrad } from "../../lib/core/autograd.js";
import { full, tensor } from "../../lib/core/create.js";
import { AutogradError, DisposedError } from "../../lib/core/errors.js";
import { native } from "../../lib/core/native.js";
import { memory, synchronize } from "../../lib/core/runtime.js";
import { scope } from "../../lib/core/scope.js";
import { empty, type Tensor } from "../../lib/core/tensor.js";
import { mul, sum } from "../../lib/ops/index.js";

/** A test that must leave no tensor behind. */
function clean(name: string, body: () => Promise<void>): void {
  test(name, async () => {
    await synchronize();
    const before = memory().tensors;
    await scope(body);
    await synchronize();
    expect(memory().tensors).toBe(before);
  });
}

const leaf = (values: number[]) => tensor(values, { requiresGrad: true });

/** The identity, with a backward that calls a function. */
function passing(x: Tensor, onBackward: () => void): Tensor {
  return differentiable("passing", {
    inputs: [x],
    outputs: [mul(x.detach(), 1)],
    backward: ([gradient]) => {
      onBackward();
      return [gradient as Tensor];
    },
  });
}

clean("a backward within a backward runs another graph, and both are right", async () => {
  const inner = leaf([5]);
  const x = leaf([2, 3]);
  const y = passing(mul(x, x), () => withGrad(() => sum(mul(inner, 7)).backward()));
  sum(y).backward();
  expect([...((await x.grad?.toArray()) ?? [])]).toEqual([4, 6]);
  expect([...((await inner.grad?.toArray()) ?? [])]).toEqual([7]);
});

clean("a gradient within a backward, of a function that takes gradients itself", async () => {
  const x = leaf([3]);
  let slope: Promise<unknown> = Promise.resolve();
  const y = passing(x, () => {
    const second = grad((z) => {
      const [first] = grad((w) => sum(mul(mul(w as Tensor, w as Tensor), 2)))(z as Tensor);
      return sum(mul(z as Tensor, first as Tensor));
    });
    slope = (second(tensor([3]))[0] as Tensor).item();
  });
  sum(mul(y, y)).backward();
  expect(await x.grad?.item()).toBe(6);
  // The inner gradient, 4z = 12, is a constant for the outer one.
  expect(await slope).toBe(12);
});

clean(
  "a backward of the graph that is running is refused, and the running one ends well",
  async () => {
    const x = leaf([2]);
    let refused: unknown;
    const y = passing(mul(x, x), () => {
      try {
        y.backward();
      } catch (error) {
        refused = error;
      }
    });
    y.backward();
    expect(refused).toBeInstanceOf(AutogradError);
    expect(await x.grad?.item()).toBe(4);
  },
);

clean(
  "a backward that throws leaves no gradients behind, and the graph counts as run",
  async () => {
    const x = leaf([2, 2]);
    const y = passing(mul(x, x), () => {
      throw new RangeError("from within");
    });
    const loss = sum(y);
    await synchronize();
    const held = memory().tensors;
    expect(() => loss.backward()).toThrow("from within");
    await synchronize();
    expect(memory().tensors).toBeLessThanOrEqual(held);
    expect(() => loss.backward()).toThrow(/has run already/);
    sum(mul(x, 3)).backward();
    expect([...((await x.grad?.toArray()) ?? [])]).toEqual([3, 3]);
  },
);

clean("a list whose getter disposes an argument of the same call", async () => {
  const x = full([2, 3], 5);
  const y = empty([3, 2]);
  const order = [1, 0];
  Object.defineProperty(order, 0, {
    get() {
      x.dispose();
      return 1;
    },
  });
  // The call took the tensor before the getter ran. Its memory lives until the operation has run.
  native.permute(x.native, y.native, order);
  expect(() => native.permute(x.native, y.native, [1, 0])).toThrow(/has been disposed/);
  expect([...(await y.toArray())]).toEqual([5, 5, 5, 5, 5, 5]);
});

clean("a list whose getter throws, or calls the operation again", async () => {
  const x = full([2, 3], 5);
  const y = empty([3, 2]);
  const trap = [1, 0];
  Object.defineProperty(trap, 1, {
    get() {
      throw new RangeError("trap");
    },
  });
  expect(() => native.permute(x.native, y.native, trap)).toThrow("trap");
  await expect(y.toArray()).rejects.toThrow(/never computed/);
  const nested = [1, 0];
  Object.defineProperty(nested, 0, {
    get() {
      native.permute(x.native, y.native, [1, 0]);
      return 1;
    },
  });
  native.permute(x.native, y.native, nested);
  expect([...(await y.toArray())]).toEqual([5, 5, 5, 5, 5, 5]);
});

clean("a continuation of a wait enqueues and waits again, beside one that disposes", async () => {
  const x = full([4], 1);
  const results = await Promise.all(
    Array.from({ length: 20 }, async (_, i) => {
      const y = mul(x, i);
      const first = await y.toArray();
      const again = mul(y, 2).toArray();
      y.dispose();
      expect(() => mul(y, 2)).toThrow(DisposedError);
      return [first[0], (await again)[0]];
    }),
  );
  expect(results).toEqual(Array.from({ length: 20 }, (_, i) => [i, 2 * i]));
});
