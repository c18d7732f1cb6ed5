// All operations, one file each; a new operation gets a line here. Composed forms are not exported
// here, because they serve as definitions and as oracles of tests.
export {
  adaptedLinear,
  type FrozenLinear,
  frozenLinear,
  type LowRankAdapters,
} from "./adapted-linear.js";
export {
  type AttentionOptions,
  attention,
  attentionCached,
  attentionPaged,
  type CachedAttentionOptions,
  type CausalAttentionOptions,
  type PagedAttentionOptions,
  type PagedPlaces,
} from "./attention.js";
export * from "./binary.js";
export { broadcastTo, type Operand } from "./broadcast.js";
export * from "./cast.js";
export * from "./compare.js";
export { type CrossEntropyOptions, crossEntropy } from "./cross-entropy.js";
export { type DropoutOptions, dropout } from "./dropout.js";
export { embedding } from "./embedding.js";
export * from "./gather.js";
export { type HeadNormOptions, headNorm } from "./head-norm.js";
export { linear } from "./linear.js";
export {
  linearCrossEntropy,
  linearTargetScores,
  linearTokenLosses,
  type TargetScores,
} from "./linear-cross-entropy.js";
export * from "./matmul.js";
export { type NormLinearOptions, normLinear } from "./norm-linear.js";
export * from "./random.js";
export * from "./reduce.js";
export { addRmsNorm, rmsNorm } from "./rms-norm.js";
export { type RopeOptions, rope, ropeTable } from "./rope.js";
export {
  argmax,
  latestIds,
  promptToken,
  type RowSampling,
  type SampleOptions,
  type SampleTables,
  sample,
  sampleRows,
} from "./sample.js";
export { segmentSum } from "./segment-sum.js";
export * from "./shape.js";
export * from "./slice.js";
export { logSoftmax, softmax } from "./softmax.js";
export { swiglu } from "./swiglu.js";
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
