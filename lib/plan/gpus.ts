/**
 * The GPUs and links that `plan` knows, from which scaling estimates start. Bandwidths are bytes
 * per second in one direction.
 */

export interface Gpu {
  name: string;
  /** Memory size, as nvidia-smi lists it. */
  memoryBytes: number;
  /** Bandwidth of the device's own memory, from the data sheet. */
  memoryBandwidth: number;
  /**
   * Causal TFLOP/s of forward and backward in bf16, without recomputation; null if nobody has
   * measured it.
   */
  rate: Rate | null;
  /** Bandwidth of a ring between the GPUs of a node; null if boards differ. */
  nodeBandwidth: number | null;
  /** Bandwidth from a node to the others; null if there is no usual one. */
  networkBandwidth: number | null;
}

/** A measured speed of a GPU. */
export interface Rate {
  tflops: number;
  source: string;
  /**
   * Number of GPUs in the measurement. The rate includes the slowdown that they cause each other.
   */
  gpus: number;
}

const MiB = 2 ** 20;
const gigabit = 1e9 / 8;

/**
 * NVLink of A100: 12 links at the 20.0 GB/s per link that NCCL itself assumes (SM80_NVLINK_BW of
 * NCCL's src/graph/topo.h); the data sheet says 25. NVLink of Hopper: measured between two H200
 * with 18 links while they compute, from the time difference between collectives of 88 and 262 MB:
 * 281 GB/s for reduce-scatter, 307 for all-gather, 351 for all-reduce (NCCL assumes 371). Network:
 * the adapters of NVIDIA's DGX with that GPU at line rate, 8 x 200 Gbit/s InfiniBand HDR for A100,
 * 8 x 400 Gbit/s NDR for H100 and H200. Clouds have less: pass the bandwidth that nccl-tests
 * measures.
 */
const a100 = { nodeBandwidth: 12 * 20.0e9, networkBandwidth: 8 * 200 * gigabit };
const hopper = { nodeBandwidth: 310e9, networkBandwidth: 8 * 400 * gigabit };
const board = { nodeBandwidth: null, networkBandwidth: null };

/**
 * TinyLlama's README: 24,000 tokens/s on an A100-40G at 6.760 GFLOP per token (causal; TinyLlama's
 * 56% counts attention without the mask). TinyLlama's own code measured this over 16 GPUs, so the
 * rate already includes communication.
 */
const tinyLlama: Rate = {
  tflops: 162.2,
  source: "TinyLlama's README: 24,000 tokens/s on A100-40G",
  gpus: 16,
};

/**
 * A step of 131,072 tokens of TinyLlama-1.1B takes 1,577.7 ms, 13.4 ms of them for the optimizer,
 * at 6.760 GFLOP per token.
 */
const ourH100: Rate = {
  tflops: 566.4,
  source: "bench/results/parity-nvidia-h100.json",
  gpus: 1,
};
/** The step of `ourH100` takes 1,566.5 ms on an H200, 9.9 ms of them for the optimizer. */
const ourH200: Rate = {
  tflops: 569.2,
  source: "bench/results/parity-nvidia-h200-first.json",
  gpus: 1,
};

/**
 * Costs of running several GPUs besides waiting, measured between two H200
 * (bench/results/gpus-2x-nvidia-h200-first.json, docs/LOG.md). Blocks get slower by 0.14 to 0.19 of
 * the time of the collectives that run during them, at equal clocks. The skew is the remaining,
 * unexplained part of the longer steps of one run. The GPUs differed by up to 5% within a step,
 * maybe because of their clocks.
 */
export const together = { slowdown: 0.2, skew: 0.02 };

export const gpus: Readonly<Record<string, Gpu>> = {
  "a100-40g": {
    name: "A100-40G",
    memoryBytes: 40_960 * MiB,
    memoryBandwidth: 1.555e12,
    rate: tinyLlama,
    ...a100,
  },
  "a100-80g": {
    name: "A100-80G",
    memoryBytes: 81_920 * MiB,
    memoryBandwidth: 2.039e12,
    rate: tinyLlama,
    ...a100,
  },
  h100: {
    name: "H100 SXM",
    memoryBytes: 81_559 * MiB,
    memoryBandwidth: 3.35e12,
    rate: ourH100,
    ...hopper,
  },
  h200: {
    name: "H200 SXM",
    memoryBytes: 143_771 * MiB,
    memoryBandwidth: 4.8e12,
    rate: ourH200,
    ...hopper,
  },
  l40s: {
    name: "L40S",
    memoryBytes: 46_068 * MiB,
    memoryBandwidth: 0.864e12,
    rate: null,
    ...board,
  },
  "rtx-4090": {
    name: "RTX 4090",
    memoryBytes: 24_564 * MiB,
    memoryBandwidth: 1.008e12,
    rate: null,
    ...board,
  },
};

/**
 * GPU memory that training tensors cannot use: about 1 GB for CUDA's context, NCCL's buffers and
 * the GEMMs' workspaces, and 1 GB of difference between the reserved memory and the tensors in it
 * (parity-nvidia-h100.json).
 */
export const reservedBytes = 2e9;

/**
 * Share of the data sheet's bandwidth that the optimizer reaches: 34 bytes x 1.1e9 parameters in
 * 13.6 ms on an H100, in 9.9 ms on an H200 (0.79).
 */
export const optimizerBandwidthShare = 0.82;
