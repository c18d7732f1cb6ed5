import {
  checkArray,
  checkChoice,
  checkInstance,
  checkInteger,
  checkNumber,
  checkObject,
  checkOptions,
  checkString,
} from "../core/check.js";
import { zeros } from "../core/create.js";
import { ArgumentError } from "../core/errors.js";
import { scope } from "../core/scope.js";
import type { Tensor } from "../core/tensor.js";
import {
  Linear,
  Module,
  Parameter,
  type ParameterGroupSpec,
  type StoreOptions,
} from "../nn/index.js";
import { concat, linear, mul } from "../ops/index.js";
import type { Cost } from "./cost.js";
import type { FileTensor, HuggingFaceFiles } from "./files.js";
import {
  type Cache,
  type Context,
  LanguageModel,
  type ModelConfig,
  type PagedCache,
  type Recompute,
} from "./language-model.js";
import {
  adapterConfig,
  adapterFiles,
  adapterName,
  type LoraConfig,
  loraTargets,
} from "./lora-config.js";

/** The adapter of one matrix W of the files: W + alpha / rank · up · down. */
class LoraLayer extends Module {
  /** (rank, inputs): PEFT's `lora_A`. */
  readonly down: Parameter;
  /** (outputs, rank): PEFT's `lora_B`, initially 0. */
  readonly up: Parameter;

  constructor(inputs: number, outputs: number, rank: number) {
    super();
    // The variance of PEFT's uniform numbers.
    this.down = new Parameter([rank, inputs], { kind: "normal", std: 1 / Math.sqrt(3 * inputs) });
    this.up = new Parameter([outputs, rank], { kind: "constant", value: 0 });
  }
}

/** An adapter and the rows of a packed layer that it changes. */
interface PlacedLayer {
  /** Name of the files' matrix, without `.weight`. */
  name: string;
  layer: LoraLayer;
  firstRow: number;
  rows: number;
}

/**
 * A frozen model with low-rank adapters (Hu et al. 2021, arXiv 2106.09685), which alone are
 * trained: the model's own weights have neither master copy nor gradients nor moments. Its files
 * are PEFT's: `adapter_config.json` and `adapter_model.safetensors`.
 *
 *     const base = await loadModel(folder, { dtype: "bf16" });
 *     const model = LoraModel.create(base, { rank: 16, alpha: 32, targets: ["q_proj", "v_proj"] });
 */
export class LoraModel extends LanguageModel {
  readonly lora: LoraConfig;
  readonly layers: readonly LoraLayer[];
  readonly #base: LanguageModel;
  readonly #placed: readonly PlacedLayer[];

  /** @throws ArgumentError if no matrix of the model has the name of a target */
  constructor(base: LanguageModel, lora: LoraConfig) {
    super();
    const op = "LoraModel";
    checkInstance(op, "base", base, LanguageModel, "a language model");
    checkObject(op, "lora", lora, "settings of adapters: { rank, alpha, targets }");
    checkOptions(op, lora, ["rank", "alpha", "targets", "base"]);
    checkInteger(op, "lora.rank", lora.rank, { min: 1, max: 65_536 });
    checkNumber(op, "lora.alpha", lora.alpha, { min: 0 });
    checkArray(op, "lora.targets", lora.targets, `a list of ${loraTargets.join(", ")}`);
    if (lora.targets.length === 0) throw new ArgumentError(`[${op}] expected targets, got none`);
    for (const target of lora.targets) checkChoice(op, "a target", target, loraTargets);
    if (lora.base !== undefined) checkString(op, "lora.base", lora.base);
    this.#base = base;
    this.lora = lora;
    base.freeze();
    const placed: PlacedLayer[] = [];
    for (const [owner, tensors] of targetsOf(base, lora)) {
      const parts = tensors.map(({ name, shape, offset }): PlacedLayer => {
        const [outputs = 0, inputs = 0] = shape;
        return {
          name: name.replace(/\.weight$/, ""),
          layer: new LoraLayer(inputs, outputs, lora.rank),
          firstRow: offset / inputs,
          rows: outputs,
        };
      });
      const [rows = 0] = owner.weight.shape;
      owner.adapter = (x) => change(x, parts, rows, lora.alpha / lora.rank);
      placed.push(...parts);
    }
    this.#placed = placed;
    this.layers = placed.map(({ layer }) => layer);
  }

  /**
   * A model with adapters that have memory, on the base's device and in its dtype.
   * @param base a model with memory; it belongs to the new model, which frees it
   */
  static create(
    base: LanguageModel,
    lora: LoraConfig,
    options: Pick<StoreOptions, "seed" | "parallel"> = {},
  ): LoraModel {
    checkInstance("LoraModel.create", "base", base, LanguageModel, "a language model");
    checkOptions("LoraModel.create", options, ["seed", "parallel"]);
    const { device, dtype } = base.store;
    return new LoraModel(base, lora).allocate({ ...options, device, dtype });
  }

  override get config(): ModelConfig {
    return this.#base.config;
  }

  override get headWeight(): Parameter {
    return this.#base.headWeight;
  }

  override get recompute(): Recompute {
    return this.#base.recompute;
  }

  override set recompute(recompute: Recompute) {
    this.#base.recompute = recompute;
  }

  override hidden(ids: Tensor, cache?: Cache | PagedCache, context: Context = {}): Tensor {
    return this.#base.hidden(ids, cache, context);
  }

  override createCache(batch: number, length = this.config.contextLength): Cache {
    return this.#base.createCache(batch, length);
  }

  override createPages(count: number, size: number): readonly Tensor[] {
    return this.#base.createPages(count, size);
  }

  /** The adapters share one flat group. */
  override parameterGroups(): ParameterGroupSpec[] {
    return [{ name: "adapters", parameters: this.namedParameters() }];
  }

  override get files(): HuggingFaceFiles {
    const parameters = new Map([...this.namedParameters()].map(([name, one]) => [one, name]));
    const tensors = this.#placed.flatMap(({ name, layer }): FileTensor[] =>
      (["down", "up"] as const).map((part) => ({
        name: adapterName(name, part),
        shape: layer[part].shape,
        parameterName: parameters.get(layer[part]) as string,
        parameter: layer[part],
        offset: 0,
      })),
    );
    return {
      tensors,
      names: adapterFiles,
      config: () => adapterConfig(this.lora),
      isCopy: () => false,
      isDerived: () => false,
    };
  }

  override get cost(): Cost {
    return this.#base.cost;
  }

  override dispose(): void {
    super.dispose();
    this.#base.dispose();
  }
}

/** The layers that hold matrices with the names of targets, and these matrices in order of rows. */
function targetsOf(base: LanguageModel, { targets }: LoraConfig): Map<Linear, FileTensor[]> {
  const owners = new Map<Parameter, Linear>();
  const visit = (module: Module): void => {
    if (module instanceof Linear) owners.set(module.weight, module);
    for (const child of module.namedChildren().values()) visit(child);
  };
  visit(base);
  const found = new Map<Linear, FileTensor[]>();
  const missing = new Set<string>(targets);
  for (const tensor of base.files.tensors) {
    const target = targets.find((name) => tensor.name.endsWith(`.${name}.weight`));
    const owner = target && owners.get(tensor.parameter);
    if (!target || !owner) continue;
    missing.delete(target);
    found.set(owner, [...(found.get(owner) ?? []), tensor]);
  }
  if (missing.size > 0) {
    throw new ArgumentError(
      `[LoraModel] no matrix of this model is called ${[...missing].join(", ")}`,
    );
  }
  return found;
}

/**
 * What the adapters add to a layer's output. Rows without an adapter get zeros.
 * @param x (..., inputs)
 * @returns (..., rows)
 */
function change(x: Tensor, parts: readonly PlacedLayer[], rows: number, scale: number): Tensor {
  const outer = x.shape.slice(0, -1);
  const pieces: Tensor[] = [];
  const gap = (size: number): void => {
    if (size === 0) return;
    pieces.push(zeros([...outer, size], { dtype: x.dtype as "f32" | "bf16", device: x.device }));
  };
  return scope(() => {
    let at = 0;
    for (const { layer, firstRow, rows: own } of parts) {
      gap(firstRow - at);
      pieces.push(mul(linear(linear(x, layer.down.tensor), layer.up.tensor), scale));
      at = firstRow + own;
    }
    gap(rows - at);
    return pieces.length === 1 ? (pieces[0] as Tensor) : concat(pieces, x.rank - 1);
  });
}
