import type { Device } from "../core/device.js";
import { native } from "../core/native.js";
import { type DType, empty, type Tensor } from "../core/tensor.js";
import type { ArchitectureConfig } from "../model/shapes.js";

/** Sizes of a training step's kernels. */
export interface KernelShapes {
  model: ArchitectureConfig;
  microBatch: number;
  sequenceLength: number;
  precision: "bf16" | "fp32";
  device: Device;
}

/**
 * The minimum work of a kernel. Its floor is this work over the device's rate. Null: only the
 * latency is measured.
 */
export type LeastWork = { bytes: number } | { flops: number } | null;

export interface KernelCase {
  group: string;
  name: string;
  work: LeastWork;
  /** Makes the inputs in the current scope. @returns one call of the kernel */
  prepare(): () => void;
}

/** Sizes, and functions that make tensors, shared by the cases. */
export class Workbench {
  readonly shapes: KernelShapes;
  readonly device: Device;
  /** Dtype of activations and weights. */
  readonly dtype: DType;
  /** Bytes of an element of `dtype`. */
  readonly element: number;
  /** Tokens per micro-batch. */
  readonly tokens: number;

  constructor(shapes: KernelShapes) {
    this.shapes = shapes;
    this.device = shapes.device;
    this.dtype = shapes.precision === "bf16" ? "bf16" : "f32";
    this.element = this.dtype === "bf16" ? 2 : 4;
    this.tokens = shapes.microBatch * shapes.sequenceLength;
  }

  /** Normal random numbers. On zeros a GPU draws less power and clocks higher than in training. */
  random(shape: readonly number[], dtype: DType = this.dtype, std = 1): Tensor {
    const x = this.empty(shape, dtype);
    native.philoxNormal(x.native, 0, std, 3407, 0);
    return x;
  }

  filled(shape: readonly number[], dtype: DType, value: number): Tensor {
    const x = this.empty(shape, dtype);
    native.fill(x.native, value);
    return x;
  }

  empty(shape: readonly number[], dtype: DType = this.dtype): Tensor {
    return empty(shape, { dtype, device: this.device });
  }
}
