import {
  checkArray,
  checkChoice,
  checkFunction,
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
import { concat, dropout, linear, mul } from "../ops/index.js";
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
  /** Name of the group of parameters that its matrix belongs to. */
  group: string;
}

/** The random numbers of an adapter's dropout in a pass. */
interface DropoutPlace {
  rate: number;
  seed: number;
  firstRow: number;
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
  #seed = 0;
  /** First row of the running pass of training; null outside of one. */
  #firstRow: number | null = null;
  /** Whether the frozen model computes alone. */
  #alone = false;

  /** @throws ArgumentError if no matrix of the model has the name of a target */
  constructor(base: LanguageModel, lora: LoraConfig) {
    super();
    const op = "LoraModel";
    checkInstance(op, "base", base, LanguageModel, "a language model");
    checkObject(op, "lora", lora, "settings of adapters: { rank, alpha, targets }");
    checkOptions(op, lora, ["rank", "alpha", "targets", "dropout", "base"]);
    checkInteger(op, "lora.rank", lora.rank, { min: 1, max: 65_536 });
    checkNumber(op, "lora.alpha", lora.alpha, { min: 0 });
    checkArray(op, "lora.targets", lora.targets, `a list of ${loraTargets.join(", ")}`);
    if (lora.targets.length === 0) throw new ArgumentError(`[${op}] expected targets, got none`);
    for (const target of lora.targets) checkChoice(op, "a target", target, loraTargets);
    if (lora.base !== undefined) checkString(op, "lora.base", lora.base);
    checkNumber(op, "lora.dropout", lora.dropout ?? 0, { min: 0, max: 0.999 });
    this.#base = base;
    this.lora = lora;
    base.freeze();
    const placed: PlacedLayer[] = [];
    const groupOf = groupNames(base);
    for (const [owner, tensors] of targetsOf(base, lora)) {
      const parts = tensors.map(({ name, shape, offset }): PlacedLayer => {
        const [outputs = 0, inputs = 0] = shape;
        return {
          name: name.replace(/\.weight$/, ""),
          layer: new LoraLayer(inputs, outputs, lora.rank),
          firstRow: offset / inputs,
          rows: outputs,
          group: groupOf.get(owner.weight) as string,
        };
      });
      const [rows = 0] = owner.weight.shape;
      const first = placed.length;
      owner.adapter = (x) => {
        if (this.#alone) return null;
        const dropouts = parts.map((_, part) => this.#dropoutOf(first + part));
        return change(x, parts, { rows, scale: lora.alpha / lora.rank, dropouts });
      };
      placed.push(...parts);
    }
    this.#placed = placed;
    this.layers = placed.map(({ layer }) => layer);
  }

  /**
   * A model with adapters that have memory, on the base's device and in its dtype.
   * @param base a model with memory; it belongs to the new model, which frees it
   * @param options `seed`: of the initial weights and of dropout
   */
  static create(
    base: LanguageModel,
    lora: LoraConfig,
    options: Pick<StoreOptions, "seed" | "parallel"> = {},
  ): LoraModel {
    checkInstance("LoraModel.create", "base", base, LanguageModel, "a language model");
    checkOptions("LoraModel.create", options, ["seed", "parallel"]);
    const { device, dtype } = base.store;
    const model = new LoraModel(base, lora).allocate({ ...options, device, dtype });
    model.#seed = options.seed ?? 0;
    return model;
  }

  override get isRandom(): boolean {
    return (this.lora.dropout ?? 0) > 0;
  }

  override inTraining<T>(firstRow: number, pass: () => T): T {
    return super.inTraining(firstRow, () => {
      const outer = this.#firstRow;
      this.#firstRow = firstRow;
      try {
        return pass();
      } finally {
        this.#firstRow = outer;
      }
    });
  }

  /**
   * Runs a function in which this model computes as the frozen one, without its adapters: as the
   * reference of preferences, for example.
   */
  withoutAdapters<T>(run: () => T): T {
    checkFunction("LoraModel", "run", run);
    const outer = this.#alone;
    this.#alone = true;
    try {
      return run();
    } finally {
      this.#alone = outer;
    }
  }

  override get config(): ModelConfig {
    return this.#base.config;
  }

  override get headWeight(): Parameter {
    return this.#base.headWeight;
  }

  override withoutFp8<T>(run: () => T): T {
    return this.#base.withoutFp8(run);
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

  /** One flat group for the adapters of each group of the frozen model: of each block. */
  override parameterGroups(): ParameterGroupSpec[] {
    const groups = new Map<string, Map<string, Parameter>>();
    for (const [index, { group, layer }] of this.#placed.entries()) {
      const parameters = groups.get(group) ?? new Map<string, Parameter>();
      for (const [name, one] of layer.namedParameters(`layers.${index}.`))
        parameters.set(name, one);
      groups.set(group, parameters);
    }
    return [...groups].map(([name, parameters]) => ({ name: `adapters.${name}`, parameters }));
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

  /** Each adapter has random numbers of its own, as each has a dropout of its own in PEFT. */
  #dropoutOf(adapter: number): DropoutPlace | null {
    const { dropout: rate = 0 } = this.lora;
    if (rate === 0 || this.#firstRow === null) return null;
    return { rate, seed: seedOf(this.#seed, adapter), firstRow: this.#firstRow };
  }
}

/** A seed for one of many uses of a run's seed: a whole number below 2^53 (Weyl's sequence). */
function seedOf(seed: number, use: number): number {
  const mixed = BigInt(seed) + BigInt(use + 1) * 0x9e3779b97f4a7c15n;
  return Number(BigInt.asUintN(53, mixed ^ (mixed >> 31n)));
}

/** The group of each parameter. */
function groupNames(model: LanguageModel): Map<Parameter, string> {
  const names = model
    .parameterGroups()
    .flatMap(({ name, parameters }) => [...parameters.values()].map((one) => [one, name] as const));
  return new Map(names);
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
 * @param x (batch, time, inputs)
 * @returns (batch, time, rows)
 */
function change(
  x: Tensor,
  parts: readonly PlacedLayer[],
  how: { rows: number; scale: number; dropouts: readonly (DropoutPlace | null)[] },
): Tensor {
  const { rows, scale, dropouts } = how;
  const outer = x.shape.slice(0, -1);
  const pieces: Tensor[] = [];
  const gap = (size: number): void => {
    if (size === 0) return;
    pieces.push(zeros([...outer, size], { dtype: x.dtype as "f32" | "bf16", device: x.device }));
  };
  return scope(() => {
    let at = 0;
    for (const [index, { layer, firstRow, rows: own }] of parts.entries()) {
      gap(firstRow - at);
      const seen = dropped(x, dropouts[index] ?? null);
      pieces.push(mul(linear(linear(seen, layer.down.tensor), layer.up.tensor), scale));
      at = firstRow + own;
    }
    gap(rows - at);
    return pieces.length === 1 ? (pieces[0] as Tensor) : concat(pieces, x.rank - 1);
  });
}

/** An adapter's input, of which training drops elements. @param x (batch, time, inputs) */
function dropped(x: Tensor, place: DropoutPlace | null): Tensor {
  if (place === null) return x;
  const { rate, seed, firstRow } = place;
  const perRow = x.size / (x.shape[0] as number);
  // Beyond 2^52 the sequence begins again.
  return dropout(x, { rate, seed, offset: (firstRow * perRow) % 2 ** 52 });
}
