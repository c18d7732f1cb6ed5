/** GPUs and links that `plan` knows: what a scaling estimate starts from. Bandwidths are bytes a second in one direction. */

export interface Gpu {
  name: string;
  /** As nvidia-smi lists it. */
  memoryBytes: number;
  /** Of the device's own memory, by the data sheet. */
  memoryBandwidth: number;
  /** Causal TFLOP/s of forward and backward in bf16, without recomputation; null where nobody has measured it. */
  rate: Rate | null;
  /** Of a ring between the GPUs of a node; null where boards differ. */
  nodeBandwidth: number | null;
  /** Of a node to the others; null where there is no usual one. */
  networkBandwidth: number | null;
}

export interface Rate {
  tflops: number;
  source: string;
  /** GPUs that it was measured on: what several cost each other is in it. */
  gpus: number;
}

const MiB = 2 ** 20;
const gigabit = 1e9 / 8;

/**
 * NVLink of A100: 12 links times what NCCL itself counts on for each, 20.0 GB/s (SM80_NVLINK_BW of NCCL's src/graph/topo.h); 25
 * by the data sheet. Of Hopper: measured between two H200 with 18 links, beside computing, by what collectives of 88 and 262 MB
 * differ in time: 281 GB/s for reduce-scatter, 307 for all-gather, 351 for all-reduce (NCCL counts on 371). Network: the
 * adapters of NVIDIA's DGX of that GPU at line rate, 8 x 200 Gbit/s InfiniBand HDR beside A100, 8 x 400 Gbit/s NDR beside H100 and
 * H200. Clouds have less: give what nccl-tests measures.
 */
const a100 = { nodeBandwidth: 12 * 20.0e9, networkBandwidth: 8 * 200 * gigabit };
const hopper = { nodeBandwidth: 310e9, networkBandwidth: 8 * 400 * gigabit };
const board = { nodeBandwidth: null, networkBandwidth: null };

/**
 * TinyLlama's README: 24,000 tokens/s on an A100-40G at 6.760 GFLOP a token (causal; its 56% count attention as if nothing were
 * masked). Measured with its own code over 16 GPUs, so that what its communication cost is in it already.
 */
const tinyLlama: Rate = {
  tflops: 162.2,
  source: "TinyLlama's README: 24,000 tokens/s on A100-40G",
  gpus: 16,
};

/** A step of 131,072 tokens of TinyLlama-1.1B in 1,577.7 ms, of which the optimizer 13.4; 6.760 GFLOP a token. */
const ourH100: Rate = {
  tflops: 566.4,
  source: "bench/results/parity-nvidia-h100.json",
  gpus: 1,
};
/** The same in 1,566.5 ms, of which the optimizer 9.9. */
const ourH200: Rate = {
  tflops: 569.2,
  source: "bench/results/parity-nvidia-h200-first.json",
  gpus: 1,
};

/**
 * What several GPUs of ours cost each other besides waiting, between two H200 (bench/results/gpus-2x-nvidia-h200-first.json,
 * docs/LOG.md): blocks take 0.14 to 0.19 of the time of the collectives beside them longer at equal clocks. The skew is what the
 * steps of one run were longer than that explains; the GPUs differed by up to 5% in a step, maybe by their clocks.
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
 * Of a GPU's memory, what training tensors cannot have: CUDA's context, NCCL's buffers and the GEMMs' workspaces, about 1 GB, and
 * 1 GB between what tensors took and what was reserved for them (parity-nvidia-h100.json).
 */
export const reservedBytes = 2e9;

/**
 * Share of the data sheet's bandwidth that the optimizer reaches: 34 bytes x 1.1e9 parameters in 13.6 ms on an H100, in 9.9 on an
 * H200 (0.79).
 */
export const optimizerBandwidthShare = 0.82;
