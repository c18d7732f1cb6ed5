/** The passes that `plan` drives a strategy through, beside those of a real model. */
import { expect, test } from "vitest";
import { parseConfig, type RunConfig } from "../../lib/config/index.js";
import { decidePrecision } from "../../lib/config/precision.js";
import { cpu } from "../../lib/core/device.js";
import { scope } from "../../lib/core/scope.js";
import { batchTensors } from "../../lib/model/batch.js";
import { Llama } from "../../lib/model/llama.js";
import { LoraModel } from "../../lib/model/lora.js";
import { type Layout, type ParallelStrategy, undivided } from "../../lib/nn/parallel.js";
import { SimulatedGroup } from "../../lib/plan/simulated-exchange.js";
import { StepQueues } from "../../lib/plan/step-queues.js";
import { simulatePass } from "../../lib/plan/step-time.js";
import { nextTokens } from "../../lib/train/objective.js";
import { PreferenceObjective } from "../../lib/train/preference-objective.js";

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

const adapters = { rank: 2, alpha: 4, dropout: 0 };
const dpo = { loss: "sigmoid", beta: 0.1, labelSmoothing: 0 } as const;

test.each<[boolean, "none" | "ffn" | "block", Partial<Pick<RunConfig, "lora" | "dpo">>]>([
  [false, "none", {}],
  [true, "none", {}],
  [false, "ffn", {}],
  [true, "block", {}],
  [false, "none", { lora: { ...adapters, targets: ["q_proj", "down_proj"] } }],
  [true, "block", { lora: { ...adapters, targets: ["o_proj"] } }],
  [false, "none", { dpo }],
  [true, "ffn", { dpo }],
  [true, "none", { dpo, lora: { ...adapters, targets: ["v_proj"] } }],
])(
  "tied %s, recompute %s, %j: the order of a real pass",
  async (tieEmbeddings, recompute, kind) => {
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
    // A recipe needs the folder of a model beside adapters and preferences.
    const config = { ...decidePrecision(asked, null), ...kind };

    const real = new Notes();
    const parallel = { device: cpu, parallel: real };
    const alone = { device: cpu, training: false };
    const model = kind.lora
      ? LoraModel.create(await Llama.create(config.model, alone), kind.lora, { parallel: real })
      : await Llama.create(config.model, parallel);
    model.recompute = recompute;
    const reference = kind.dpo && !kind.lora ? await Llama.create(config.model, alone) : null;
    const objective = kind.dpo ? new PreferenceObjective(kind.dpo, reference) : nextTokens;
    const ids = new Int32Array(8);
    const answers = Int32Array.of(0, 0, 0, 0, 1, 1, 1, 1);
    const host = { inputs: ids, targets: ids, count: 1, ...(kind.dpo && { answers, pairs: 1 }) };
    scope(() => objective.measure(model, batchTensors(host, cpu), host).loss.backward());
    const calls = structuredClone(real.calls);
    objective.dispose?.();
    model.dispose();

    const strategy = new Notes();
    const groups = model
      .parameterGroups()
      .map((_, index) => new SimulatedGroup(index, 1, undivided, [{}, {}]));
    const together = { slowdown: 0, skew: 0 };
    const work = { pass: 1, optimizerPerParameter: 0, orthogonal: 0, together };
    simulatePass(config, { queues: new StepQueues(0), strategy, groups, work }, 1);
    expect(calls.length).toBeGreaterThan(3);
    expect(strategy.calls).toEqual(calls);
  },
);
