// The notices to a parallel strategy. A group's gradients are complete when every operation on the
// tape that writes them has run. An operation that will never run must not delay the notice.
import { describe, expect, test } from "vitest";
import { grad } from "../../lib/core/autograd.js";
import { tensor } from "../../lib/core/create.js";
import { AutogradError } from "../../lib/core/errors.js";
import { scope } from "../../lib/core/scope.js";
import type { Tensor } from "../../lib/core/tensor.js";
import {
  Linear,
  type ParallelStrategy,
  ParameterStore,
  writeParameter,
} from "../../lib/nn/index.js";
import { square, sum } from "../../lib/ops/index.js";

/** A strategy of one process that counts its notices. */
function watched() {
  const told = { complete: 0, gradientNeeded: 0 };
  const nothing = () => {};
  const parallel: ParallelStrategy = {
    layout: { parts: 1, part: 0, weights: "whole" },
    worldSize: 1,
    rank: 0,
    writes: true,
    attach: nothing,
    needed: nothing,
    gradientNeeded: () => void told.gradientNeeded++,
    gradientsComplete: () => void told.complete++,
    beginMicroBatch: nothing,
    finishGradients: nothing,
    sumSquares: nothing,
    weightsChanged: nothing,
    average: nothing,
    gather: (_, owned) => owned,
  };
  const module = new Linear(2, 2, 1);
  const store = new ParameterStore(module, { seed: 1, parallel });
  const x = () => tensor([[1, 2]], { requiresGrad: true });
  const pass = (input: Tensor = x()) => sum(square(module.forward(input)));
  return { told, module, store, pass, x };
}

describe("gradients are complete", () => {
  test("after the last of the passes on the tape, once", () => {
    using _ = scope();
    const { told, store, pass } = watched();
    const [first, second] = [pass(), pass()];
    first.backward();
    expect(told.complete).toBe(0);
    second.backward();
    expect(told.complete).toBe(1);
    store.dispose();
  });

  test("also when a grad() over the parameters came between, which writes none of theirs", () => {
    using _ = scope();
    const { told, store, pass, x } = watched();
    const loss = pass();
    grad((input) => pass(input))(x());
    expect(told).toEqual({ complete: 0, gradientNeeded: 0 });
    loss.backward();
    expect(told.complete).toBe(1);
    store.dispose();
  });

  test("also after a pass whose scope ended, and one whose backward was refused", () => {
    using _ = scope();
    const { told, module, store, pass } = watched();
    scope(() => void pass());
    const refused = pass();
    writeParameter(
      module.weight,
      tensor([
        [1, 2],
        [3, 4],
      ]),
    );
    expect(() => refused.backward()).toThrow(AutogradError);
    expect(told.complete).toBe(0);
    pass().backward();
    expect(told.complete).toBe(1);
    store.dispose();
  });
});
