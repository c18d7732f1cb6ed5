/**
 * Plans a run on several GPUs and nodes: memory, step time and exposed communication of each
 * strategy.
 */

import type { RunConfig } from "../config/index.js";
import { ConfigError, type ConfigProblem } from "../core/errors.js";
import type { StrategyName } from "../dist/strategy.js";
import { loraParameterCount } from "../model/lora-config.js";
import { parameterCount } from "../model/shapes.js";
import { doesNotFit } from "./fitting.js";
import { optimizerFlops, recomputedFlops, trainingFlops } from "./flops.js";
import {
  type Gpu,
  gpus,
  optimizerBandwidthShare,
  type Rate,
  reservedBytes,
  together,
} from "./gpus.js";
import { type Division, type MemoryPlan, planMemory, withTotal } from "./memory.js";
import type { Ring } from "./step-queues.js";
import { type GpuSeconds, type Rings, type StepTime, stepTime } from "./step-time.js";

/** The machine that a run is planned for, as the command line gives it. */
export interface MachineOptions {
  /** GPUs of the run, one process each (1). */
  gpus?: number;
  /** GPUs of a node (all of them, at most 8). */
  gpusPerNode?: number;
  /** GPU model: one of the names in lib/plan/gpus.ts. */
  gpu?: string;
  /**
   * GB/s in one direction between a GPU and the others of its node. Default: the usual bandwidth of
   * that GPU.
   */
  nodeBandwidth?: number;
  /** GB/s in one direction between a node and the others. */
  networkBandwidth?: number;
  /** Tokens/s of one GPU that runs the configuration's step alone, as `bench parity` prints it. */
  tokensPerSecond?: number;
  /** Causal TFLOP/s of one GPU that runs the configuration's step alone. */
  tflops?: number;
}

/** A strategy's memory and time of a step. */
export interface StrategyPlan extends StepTime {
  parallel: StrategyName;
  memory: MemoryPlan & { total: number };
  fits: boolean;
  tokensPerSecond: number;
  /** Speed per GPU, relative to a GPU that runs its micro-batches and the whole optimizer alone. */
  efficiency: number;
}

/** A run on several GPUs, by strategy. */
export interface ScalingPlan {
  gpu: Gpu;
  gpus: number;
  nodes: number;
  /** Bytes per second. */
  nodeBandwidth: number;
  networkBandwidth: number;
  /** The origin of the figure for one GPU's speed. */
  rateSource: string;
  /** Seconds of forward and backward over all micro-batches of a step. */
  passSeconds: number;
  /** The configuration's own strategy. */
  chosen: StrategyPlan;
  /** All strategies that this number of GPUs allows; one GPU divides nothing. */
  strategies: StrategyPlan[];
  /** Duration of the whole run. */
  seconds: number;
  gpuHours: number;
  gpuHoursPer300B: number;
}

/** Smallest model whose rate in FLOP/s is meaningful. Smaller models do not fill such a device. */
export const fewestReferenceParameters = 5e7;

/**
 * Plans a run on `machine`.
 * @throws ConfigError naming everything that is missing or contradictory, or, if the configuration
 *   does not fit into the GPU's memory, changes that would make it fit
 */
export function planScaling(config: RunConfig, machine: MachineOptions): ScalingPlan {
  const { gpu, ranks, perNode, nodeBandwidth, networkBandwidth } = checkMachine(config, machine);
  const nodes = ranks / perNode;
  const { work, rateSource } = workOf(config, machine, gpu, ranks);
  const parameters = trainedParameters(config);
  const tokensPerStep = tokensOf(config) * ranks;
  const optimizer = work.optimizerPerParameter * parameters + work.orthogonal;
  const alone = work.pass * config.batch.accumulation + optimizer;

  const plan = (parallel: StrategyName): StrategyPlan => {
    const division = divisionOf({ ...config, parallel }, ranks, perNode);
    const links = { perNode, nodeBandwidth, networkBandwidth };
    const time = stepTime(config, division, ringsOf(division, links), work);
    const memory = withTotal(planMemory(config, division));
    return {
      ...time,
      parallel,
      memory,
      fits: memory.total <= usableBytes(gpu),
      tokensPerSecond: tokensPerStep / time.seconds,
      efficiency: alone / time.seconds,
    };
  };
  const chosen = plan(ranks === 1 ? "replicated" : config.parallel);
  if (!chosen.fits) {
    const others = ranks === 1 ? [] : strategiesOf(config, ranks, perNode);
    const bytesOf = (changed: RunConfig) =>
      withTotal(planMemory(changed, divisionOf(changed, ranks, perNode))).total;
    throw doesNotFit({ config, gpu, usable: usableBytes(gpu), others, bytesOf });
  }
  const seconds = chosen.seconds * config.steps;
  const gpuHours = (seconds * ranks) / 3600;
  const strategies = ranks === 1 ? [chosen] : strategiesOf(config, ranks, perNode).map(plan);
  return {
    gpu,
    gpus: ranks,
    nodes,
    nodeBandwidth,
    networkBandwidth,
    rateSource,
    passSeconds: work.pass * config.batch.accumulation,
    chosen,
    strategies,
    seconds,
    gpuHours,
    gpuHoursPer300B: (gpuHours * 300e9) / (tokensPerStep * config.steps),
  };
}

/** Scalars that the optimizer updates. */
function trainedParameters({ model, lora }: RunConfig): number {
  return lora ? loraParameterCount(lora, model) : parameterCount(model);
}

/** Tokens per GPU and step. */
function tokensOf({ batch, data }: RunConfig): number {
  return batch.microBatch * batch.accumulation * data.sequenceLength;
}

function usableBytes(gpu: Gpu): number {
  return gpu.memoryBytes - reservedBytes;
}

interface Machine {
  gpu: Gpu;
  ranks: number;
  perNode: number;
  nodeBandwidth: number;
  networkBandwidth: number;
}

function checkMachine(config: RunConfig, machine: MachineOptions): Machine {
  const problems: ConfigProblem[] = [];
  const report = (path: string, message: string) => problems.push({ path, message });
  const { gpus: ranks = 1, gpu: name } = machine;
  const perNode = machine.gpusPerNode ?? Math.min(8, ranks);
  for (const [path, value] of [
    ["--gpus", ranks],
    ["--gpus-per-node", perNode],
  ] as const) {
    if (!(Number.isInteger(value) && value >= 1)) {
      report(path, `expected a whole number from 1, got ${value}`);
    }
  }
  if (config.device === "cpu") report("device", "cpu has no GPUs: --set device=cuda");
  if (perNode > ranks) {
    report("--gpus-per-node", `${perNode} are more than the ${ranks} GPUs of the run`);
  } else if (ranks % perNode !== 0) {
    report("--gpus-per-node", `${perNode} do not divide ${ranks} GPUs into equal nodes`);
  }
  const { shardSize } = config.distributed;
  if (config.parallel === "hybrid_shard" && shardSize !== undefined && ranks % shardSize !== 0) {
    report("distributed.shardSize", `${shardSize} ranks do not divide ${ranks} GPUs`);
  }
  const gpu = name !== undefined && Object.hasOwn(gpus, name) ? gpus[name] : undefined;
  if (gpu === undefined) {
    const got = name === undefined ? "missing" : `not known: ${JSON.stringify(name)}`;
    report("--gpu", `${got}; expected one of ${Object.keys(gpus).join(", ")}`);
  } else {
    checkRate(config, machine, gpu, report);
  }
  const bandwidth = (
    path: string,
    used: boolean,
    given: number | undefined,
    usual: number | null | undefined,
  ): number => {
    if (given !== undefined && !(given > 0)) report(path, `expected GB/s above 0, got ${given}`);
    const known = given === undefined ? usual : given * 1e9;
    if (used && known === null) {
      report(path, `${gpu?.name} has no usual one: give what nccl-tests measures, in GB/s`);
    }
    return known ?? 0;
  };
  const nodeBandwidth = bandwidth(
    "--node-bandwidth",
    perNode > 1,
    machine.nodeBandwidth,
    gpu?.nodeBandwidth,
  );
  const networkBandwidth = bandwidth(
    "--network-bandwidth",
    ranks > perNode,
    machine.networkBandwidth,
    gpu?.networkBandwidth,
  );
  if (problems.length > 0 || gpu === undefined) throw new ConfigError("the plan", problems);
  return { gpu, ranks, perNode, nodeBandwidth, networkBandwidth };
}

function checkRate(
  { model, precision }: RunConfig,
  { tokensPerSecond, tflops }: MachineOptions,
  { name, rate }: Gpu,
  report: (path: string, message: string) => void,
): void {
  if (tokensPerSecond !== undefined && tflops !== undefined) {
    report("--tflops", "says the same as --tokens-per-second: give one of them");
  }
  if (tokensPerSecond !== undefined || tflops !== undefined) return;
  const give = "give --tokens-per-second, as `llamaforge bench parity` measures it on one";
  if (rate === null) {
    report("--gpu", `nobody has measured LlamaForge on ${name}: ${give}`);
  } else if (precision !== "bf16") {
    report("precision", `the rate of ${name} is that of bf16: ${give}`);
  } else if (parameterCount(model) < fewestReferenceParameters) {
    report("model", `a model this small does not fill ${name}: ${give}`);
  }
}

/** Duration of one GPU's own work, from a measured step of one GPU or from the table. */
function workOf(
  config: RunConfig,
  { tokensPerSecond, tflops }: MachineOptions,
  gpu: Gpu,
  ranks: number,
): { work: GpuSeconds; rateSource: string } {
  const { data, batch, precision } = config;
  const flops = trainingFlops(config).causal;
  // The optimizer reads fp32 gradients, weights (master) and moments, and writes weights and
  // moments; with bf16 it also writes the bf16 weights. The norm reads the gradients once more.
  const bytesPerParameter = precision === "fp32" ? 32 : 34;
  const optimizerPerParameter = bytesPerParameter / (optimizerBandwidthShare * gpu.memoryBandwidth);
  const elementwise = optimizerPerParameter * trainedParameters(config);
  const products = optimizerFlops(config);
  const alone = { slowdown: 0, skew: 0 };
  const rate = tokensPerSecond ?? (tflops === undefined ? undefined : (tflops * 1e12) / flops);
  if (rate !== undefined) {
    const step = tokensOf(config) / rate;
    // Muon's products run at the rate of the pass's.
    const share = products / (products + tokensOf(config) * flops);
    const orthogonal = Math.max(0, step - elementwise) * share;
    const optimizer = elementwise + orthogonal;
    if (step <= optimizer) {
      const path = tokensPerSecond === undefined ? "--tflops" : "--tokens-per-second";
      const message =
        `a step of ${(1000 * step).toPrecision(3)} ms is shorter than its optimizer, ` +
        `${(1000 * optimizer).toPrecision(3)} ms: is it that of one GPU and this configuration?`;
      throw new ConfigError("the plan", [{ path, message }]);
    }
    return {
      work: {
        pass: (step - optimizer) / batch.accumulation,
        optimizerPerParameter,
        orthogonal,
        together: ranks > 1 ? together : alone,
      },
      rateSource: "as given",
    };
  }
  const { tflops: published, source, gpus: measuredOn } = gpu.rate as Rate;
  const spent = flops + recomputedFlops(config);
  const tokens = batch.microBatch * data.sequenceLength;
  return {
    work: {
      pass: (tokens * spent) / (published * 1e12),
      optimizerPerParameter,
      orthogonal: products / (published * 1e12),
      together: ranks > 1 && measuredOn === 1 ? together : alone,
    },
    rateSource: source,
  };
}

function divisionOf(config: RunConfig, ranks: number, perNode: number): Division {
  const { parallel, distributed } = config;
  return {
    parallel,
    ranks,
    shardSize: distributed.shardSize ?? perNode,
    reduce: distributed.reduce,
  };
}

/** The strategies to plan. With a single copy of the model, hybrid_shard would equal full_shard. */
function strategiesOf(config: RunConfig, ranks: number, perNode: number): StrategyName[] {
  const size = config.distributed.shardSize ?? perNode;
  const copies = ranks / size;
  const hybrid =
    config.parallel === "hybrid_shard" || (size > 1 && copies > 1 && Number.isInteger(copies));
  return ["replicated", "zero1", "full_shard", ...(hybrid ? (["hybrid_shard"] as const) : [])];
}

function ringsOf(
  { parallel, ranks, shardSize }: Division,
  {
    perNode,
    nodeBandwidth,
    networkBandwidth,
  }: Pick<Machine, "perNode" | "nodeBandwidth" | "networkBandwidth">,
): Rings {
  /**
   * The ring of ranks that are `stride` apart. The ranks between them communicate at the same time
   * and share the node's link.
   */
  const ring = (size: number, stride: number): Ring => {
    const nodes = Math.max(1, Math.min(size, (size * stride) / perNode));
    const shared = networkBandwidth / Math.min(stride, perNode);
    const within = stride * 2 > perNode ? Number.POSITIVE_INFINITY : nodeBandwidth;
    const bandwidth = nodes > 1 ? Math.min(within, shared) : nodeBandwidth;
    return { ranks: size, nodes, bandwidth };
  };
  const world = ring(ranks, 1);
  if (parallel !== "hybrid_shard") return { world, shard: world, replica: ring(1, 1) };
  return { world, shard: ring(shardSize, 1), replica: ring(ranks / shardSize, shardSize) };
}
