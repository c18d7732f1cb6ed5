/** The passes that `plan` drives a strategy through, beside those of a real model. */
import { expect, test } from "vitest";
import { parseConfig } from "../../lib/config/index.js";
import { decidePrecision } from "../../lib/config/precision.js";
import { tensor } from "../../lib/core/create.js";
import { cpu } from "../../lib/core/device.js";
import { scope } from "../../lib/core/scope.js";
import { Llama } from "../../lib/model/llama.js";
import { type Layout, type ParallelStrategy, undivided } from "../../lib/nn/parallel.js";
import { SimulatedGroup } from "../../lib/plan/simulated-exchange.js";
import { StepQueues } from "../../lib/plan/step-queues.js";
import { simulatePass } from "../../lib/plan/step-time.js";

/** Notes what it is told; of calls about one group in a row, each kind once. */
class Notes implements ParallelStrategy<{ index: number }, unknown> {
  readonly layout: Layout = undivided;
  readonly worldSize = 1;
  readonly rank = 0;
  readonly writes = true;
  readonly calls: string[][] = [];
  #group = -1;

  #note({ index }: { index: number }, call: string): void {
    if (index !== this.#group) this.calls.push([`group ${index}`]);
    this.#group = index;
    const row = this.calls.at(-1) as string[];
    if (!row.includes(call)) row.push(call);
  }

  // A block that is computed again reads its weights as a forward pass does: strategies know by the
  // calls before it.
  needed(group: { index: number }): void {
    this.#note(group, "needed");
  }
  gradientNeeded(group: { index: number }): void {
    this.#note(group, "gradientNeeded");
  }
  gradientsComplete(group: { index: number }): void {
    this.#note(group, "gradientsComplete");
  }
  attach(): void {}
  beginMicroBatch(): void {}
  finishGradients(): void {}
  sumSquares(): void {}
  weightsChanged(): void {}
  average(): void {}
  gather<Data>(_group: unknown, owned: Data): Data {
    return owned;
  }
}

test.each([
  [false, "none"],
  [true, "none"],
  [false, "ffn"],
  [true, "block"],
] as const)("tied %s, recompute %s: the order of a real pass", async (tieEmbeddings, recompute) => {
  const sizes = { vocabSize: 64, hiddenSize: 16, intermediateSize: 32, layers: 3 };
  const fields = { ...sizes, heads: 2, kvHeads: 1, contextLength: 8, tieEmbeddings };
  const asked = parseConfig(
    JSON.stringify({
      model: fields,
      data: { train: { nowhere: 1 }, sequenceLength: 8 },
      device: "cpu",
      recompute,
      steps: 1,
    }),
  );
  const config = decidePrecision(asked, null);

  const real = new Notes();
  const model = await Llama.create(config.model, { device: cpu, parallel: real });
  model.recompute = recompute;
  scope(() => {
    const ids = tensor(new Int32Array(8), { shape: [1, 8], dtype: "i32", device: cpu });
    model.loss({ inputs: ids, targets: ids }).backward();
  });
  const calls = structuredClone(real.calls);
  model.dispose();

  const strategy = new Notes();
  const groups = model
    .parameterGroups()
    .map((_, index) => new SimulatedGroup(index, 1, undivided, [{}, {}]));
  const together = { slowdown: 0, skew: 0 };
  const work = { pass: 1, optimizerPerParameter: 0, orthogonal: 0, together };
  simulatePass(config, { queues: new StepQueues(0), strategy, groups, work }, 1);
  expect(calls.length).toBeGreaterThan(2 * 3);
  expect(strategy.calls).toEqual(calls);
});
