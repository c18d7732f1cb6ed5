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
import { ArgumentError } from "../core/errors.js";
import type { Tensor } from "../core/tensor.js";
import {
  Linear,
  Module,
  Parameter,
  type ParameterGroupSpec,
  type StoreOptions,
} from "../nn/index.js";
import { adaptedLinear, type DropoutOptions } from "../ops/index.js";
import type { Cost } from "./cost.js";
import type { FileTensor, HuggingFaceFiles } from "./files.js";
import type { Fp8Monitor } from "./fp8-monitor.js";
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

/**
 * The adapters of one linear layer, which may hold several matrices W of the files below each other:
 * W + alpha / rank · up · down for each.
 */
class LoraLayer extends Module {
  /** (count · rank, inputs): PEFT's `lora_A` of each matrix, below each other. */
  readonly down: Parameter;
  /** (rows, rank): PEFT's `lora_B` of each matrix, below each other, initially 0. */
  readonly up: Parameter;
  readonly parts: readonly AdaptedMatrix[];
  /** Name of the group of parameters that the linear layer belongs to. */
  readonly group: string;

  constructor(parts: readonly AdaptedMatrix[], inputs: number, rank: number, group: string) {
    super();
    const rows = parts.reduce((sum, part) => sum + part.rows, 0);
    // The variance of PEFT's uniform numbers.
    const std = 1 / Math.sqrt(3 * inputs);
    this.down = new Parameter([parts.length * rank, inputs], { kind: "normal", std });
    this.up = new Parameter([rows, rank], { kind: "constant", value: 0 });
    this.parts = parts;
    this.group = group;
  }
}

/** A matrix of the files that has an adapter. */
interface AdaptedMatrix {
  /** Name of the files' matrix, without `.weight`. */
  name: string;
  /** Its first row in the linear layer that holds it. */
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
    const twice = lora.targets.find((name, place) => lora.targets.indexOf(name) < place);
    if (twice !== undefined) {
      throw new ArgumentError(`[${op}] expected each target once, got ${twice} again`);
    }
    if (lora.base !== undefined) checkString(op, "lora.base", lora.base);
    checkNumber(op, "lora.dropout", lora.dropout ?? 0, { min: 0, max: 0.999 });
    this.#base = base;
    this.lora = lora;
    base.freeze();
    const groupOf = groupNames(base);
    let first = 0;
    const layers: LoraLayer[] = [];
    for (const [owner, tensors] of targetsOf(base, lora)) {
      const [, inputs = 0] = owner.weight.shape;
      const parts = tensors.map(({ name, shape, offset }): AdaptedMatrix => {
        const [rows = 0] = shape;
        return { name: name.replace(/\.weight$/, ""), firstRow: offset / inputs, rows };
      });
      const group = groupOf.get(owner.weight) as string;
      const layer = new LoraLayer(parts, inputs, lora.rank, group);
      const adapter = first;
      owner.adapter = (x, frozen) => {
        if (this.#alone) return null;
        const dropouts = this.#dropoutsOf(adapter, parts.length, x);
        const [down, up] = [layer.down.tensor, layer.up.tensor];
        const scale = lora.alpha / lora.rank;
        return adaptedLinear(x, frozen, { down, up, parts, scale, ...(dropouts && { dropouts }) });
      };
      layers.push(layer);
      first += parts.length;
    }
    this.layers = layers;
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

  /** With fp8, the products with the frozen weights run in fp8. The adapters stay in bf16. */
  override get fp8(): boolean {
    return this.#base.fp8;
  }

  override set fp8(fp8: boolean) {
    this.#base.fp8 = fp8;
  }

  override get computesInFp8(): boolean {
    return this.#base.computesInFp8;
  }

  override get fp8Monitor(): Fp8Monitor | null {
    return this.#base.fp8Monitor;
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
    for (const [index, layer] of this.layers.entries()) {
      const parameters = groups.get(layer.group) ?? new Map<string, Parameter>();
      for (const [name, one] of layer.namedParameters(`layers.${index}.`)) {
        parameters.set(name, one);
      }
      groups.set(layer.group, parameters);
    }
    return [...groups].map(([name, parameters]) => ({ name: `adapters.${name}`, parameters }));
  }

  override get files(): HuggingFaceFiles {
    const { rank } = this.lora;
    const tensors = this.layers.flatMap(({ down, up, parts }, index): FileTensor[] => {
      const inputs = down.shape[1] as number;
      const half = (part: "down" | "up", parameter: Parameter) => ({
        parameterName: `layers.${index}.${part}`,
        parameter,
      });
      let row = 0;
      return parts.flatMap(({ name, rows }, adapter): FileTensor[] => {
        const first = { ...half("down", down), offset: adapter * rank * inputs };
        const second = { ...half("up", up), offset: row * rank };
        row += rows;
        return [
          { name: adapterName(name, "down"), shape: [rank, inputs], ...first },
          { name: adapterName(name, "up"), shape: [rows, rank], ...second },
        ];
      });
    });
    return {
      tensors,
      names: adapterFiles,
      config: () => adapterConfig(this.lora),
      originalOf: () => null,
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

  /**
   * Dropout of the adapters from `first` on, whose input is x (batch, time, inputs); null outside of
   * training. Each adapter has random numbers of its own, as each has a dropout of its own in PEFT.
   */
  #dropoutsOf(first: number, count: number, x: Tensor): DropoutOptions[] | null {
    const { dropout: rate = 0 } = this.lora;
    if (rate === 0 || this.#firstRow === null) return null;
    const perRow = x.size / (x.shape[0] as number);
    // Beyond 2^52 the sequence begins again.
    const offset = (this.#firstRow * perRow) % 2 ** 52;
    return Array.from({ length: count }, (_, adapter) => ({
      rate,
      offset,
      seed: seedOf(this.#seed, first + adapter),
    }));
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
