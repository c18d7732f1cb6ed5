// All operations, one file each. A new operation gets its line here.
export * from "./attention.js";
export * from "./binary.js";
export { broadcastTo, type Operand } from "./broadcast.js";
export * from "./cast.js";
export * from "./compare.js";
export { type CrossEntropyOptions, crossEntropy } from "./cross-entropy.js";
export * from "./embedding.js";
export * from "./gather.js";
export * from "./linear.js";
export * from "./linear-cross-entropy.js";
export * from "./matmul.js";
export * from "./random.js";
export * from "./reduce.js";
export * from "./rms-norm.js";
export * from "./rope.js";
export * from "./sample.js";
export * from "./shape.js";
export * from "./slice.js";
export * from "./softmax.js";
export * from "./swiglu.js";
export {
  abs,
  cos,
  exp,
  gelu,
  log,
  neg,
  reciprocal,
  relu,
  rsqrt,
  sigmoid,
  silu,
  sin,
  sqrt,
  square,
  tanh,
} from "./unary.js";
export { where } from "./where.js";
