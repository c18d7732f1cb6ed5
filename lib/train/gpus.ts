/** GPUs and links that `plan` knows: what a scaling estimate starts from. Bandwidths are bytes a second in one direction. */

export interface Gpu {
  name: string;
  /** As nvidia-smi lists it. */
  memoryBytes: number;
  /** Of the device's own memory, by the data sheet. */
  memoryBandwidth: number;
  /** Causal TFLOP/s of forward and backward in bf16, without recomputation; null where nobody has measured it. */
  rate: { tflops: number; source: string } | null;
  /** Of a ring between the GPUs of a node; null where boards differ. */
  nodeBandwidth: number | null;
  /** Of a node to the others; null where there is no usual one. */
  networkBandwidth: number | null;
}

const MiB = 2 ** 20;
const gigabit = 1e9 / 8;

/**
 * NVLink: links times what NCCL itself counts on for each, 20.0 GB/s from Ampere and 20.6 GB/s from Hopper on (SM80_NVLINK_BW,
 * SM90_NVLINK_BW of NCCL's src/graph/topo.h); 25 by the data sheet. Network: the adapters of NVIDIA's DGX of that GPU at line
 * rate, 8 x 200 Gbit/s InfiniBand HDR beside A100, 8 x 400 Gbit/s NDR beside H100 and H200. Clouds have less: give what
 * nccl-tests measures.
 */
const a100 = { nodeBandwidth: 12 * 20.0e9, networkBandwidth: 8 * 200 * gigabit };
const hopper = { nodeBandwidth: 18 * 20.6e9, networkBandwidth: 8 * 400 * gigabit };
const board = { nodeBandwidth: null, networkBandwidth: null };

/**
 * TinyLlama's README: 24,000 tokens/s on an A100-40G at 6.760 GFLOP a token (causal; its 56% count attention as if nothing were
 * masked). Measured with its own code over 16 GPUs, so that what its communication cost is in it already.
 */
const tinyLlama = { tflops: 162.2, source: "TinyLlama's README: 24,000 tokens/s on A100-40G" };

/**
 * bench/results/parity-nvidia-h100.json: a step of 131,072 tokens of TinyLlama-1.1B takes 1,589.0 ms, of which the optimizer
 * 13.6; 6.760 GFLOP a token.
 */
const ours = { tflops: 562.4, source: "bench/results/parity-nvidia-h100.json" };

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
    rate: ours,
    ...hopper,
  },
  h200: {
    name: "H200 SXM",
    memoryBytes: 143_771 * MiB,
    memoryBandwidth: 4.8e12,
    rate: null,
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

/** Share of the data sheet's bandwidth that the optimizer reaches: 34 bytes x 1.1e9 parameters in 13.6 ms on an H100. */
export const optimizerBandwidthShare = 0.82;
