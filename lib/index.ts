// The public surface: everything a user imports from "llamaforge".

export type { CheckpointPlace } from "./checkpoint/folder.js";
export {
  type Checkpoint,
  type OpenNewestOptions,
  type OpenOptions,
  openCheckpoint,
  openNewest,
} from "./checkpoint/load.js";
export { type Manifest, verifyCheckpoint } from "./checkpoint/manifest.js";
export {
  type LoadModelOptions,
  loadModel,
  type SaveModelOptions,
  saveModel,
} from "./checkpoint/model.js";
export type { Digest, TensorValues } from "./checkpoint/native-io.js";
export {
  type ReadOptions,
  readSafetensors,
  type StoredTensor,
  type StoredTensors,
  type TensorSource,
  writeSafetensors,
} from "./checkpoint/safetensors.js";
export {
  type LoadedConfig,
  loadConfig,
  type Precision,
  parseConfig,
  type RunConfig,
  type RunConfigInput,
  resolveConfig,
} from "./config/index.js";
export { grad, noGrad, recompute } from "./core/autograd.js";
export {
  arange,
  empty,
  full,
  type NestedNumbers,
  ones,
  type TensorOptions,
  type TypedArray,
  tensor,
  zeros,
} from "./core/create.js";
export {
  cpu,
  cuda,
  type Device,
  defaultDevice,
  parseDevice,
  setDefaultDevice,
} from "./core/device.js";
export * from "./core/errors.js";
export {
  checkGradients,
  type GradCheckOptions,
  type GradCheckResult,
} from "./core/grad-check.js";
export {
  type BuildInfo,
  buildInfo,
  type NativeMemory as DeviceMemory,
  setThreads,
} from "./core/native.js";
export { memory, ready, resetPeakMemory, setMemoryLimit, synchronize } from "./core/runtime.js";
export { keep, type Scope, scope } from "./core/scope.js";
export { type BackwardOptions, type DType, Tensor } from "./core/tensor.js";
export {
  type DocumentOptions,
  type LoadedBatch,
  Loader,
  type LoaderOptions,
  type WindowSource,
} from "./data/loader.js";
export {
  Mixture,
  type MixtureOptions,
  type MixtureSource,
  type Place as WindowPlace,
} from "./data/mixture.js";
export { type DatasetChats, type DatasetOptions, TokenDataset } from "./data/shards.js";
export type { SpannedIds, SpannedText } from "./data/spanned-text.js";
export type { TextStream } from "./data/text-stream.js";
export {
  type DecodeOptions,
  type EncodeOptions,
  Tokenizer,
  type VocabularyOfModel,
} from "./data/tokenizer.js";
export { verifyDataset } from "./data/verify.js";
export type { WindowRows } from "./data/windows.js";
export { type DocumentMarks, documentStarts } from "./data/windows.js";
export { Cluster, type ClusterOptions } from "./dist/cluster.js";
export {
  type CollectiveKind,
  type CollectiveStats,
  Communicator,
  type CommunicatorOptions,
  type Reduction,
  type Work,
} from "./dist/communicator.js";
export type { Arrival, Exchange, ReduceDType, StrategyOptions } from "./dist/exchange.js";
export { FullShard, type FullShardOptions } from "./dist/full-shard.js";
export { Replicated } from "./dist/replicated.js";
export { type RendezvousOptions, Store } from "./dist/store.js";
export type { StrategyName } from "./dist/strategy.js";
export {
  type ChromeEvent,
  chromeTrace,
  type StepSummary,
  summariseTimeline,
  type Timeline,
  type TimelineSpan,
} from "./dist/timeline.js";
export {
  describeWorld,
  type Launcher,
  readWorld,
  type World,
  type WorldVariables,
} from "./dist/world.js";
export { Zero1 } from "./dist/zero1.js";
export { type EvaluateOptions, evaluate } from "./eval/evaluate.js";
export type {
  CutPrompts,
  EvaluationResults,
  EvaluationSample,
  TaskScores,
} from "./eval/results.js";
export type { EvaluationProgress } from "./eval/run-tasks.js";
export type { ProgramEnd, ProgramResult } from "./eval/sandbox.js";
export type {
  AnswerFilter,
  ChoiceTask,
  ContinuationTask,
  ExampleFile,
  FewShot,
  GenerationTask,
  Row,
  RunPrograms,
  Task,
  TaskData,
  TextMetric,
  TextTask,
} from "./eval/task.js";
export { type ExportGgufOptions, exportGguf } from "./export/gguf.js";
export {
  type ExportHuggingFaceOptions,
  exportHuggingFace,
} from "./export/hugging-face.js";
export { type MergeAdapterOptions, mergeAdapter } from "./export/merge.js";
export type { AnswerPart, CompleteAnswer } from "./generate/answer.js";
export type { ChatMessage } from "./generate/chat-messages.js";
export { type ChatSource, ChatTemplate, type RenderOptions } from "./generate/chat-template.js";
export { endTokens } from "./generate/end-tokens.js";
export {
  type AnswerOptions,
  Engine,
  type EngineState,
  type NewEngineOptions,
  type OpenEngineOptions,
} from "./generate/engine.js";
export type { EngineOptions } from "./generate/engine-schema.js";
export { generate, generateTokens, type TextCodec } from "./generate/generate.js";
export type { GenerateOptions } from "./generate/schema.js";
export type { ScoredToken } from "./generate/score.js";
export type { ChosenToken, FinishReason } from "./generate/sequence.js";
export {
  type DownloadOptions,
  type DownloadProgress,
  downloadModel,
} from "./hub/download-model.js";
export type { ModelParts } from "./hub/model-files.js";
export {
  type PushOptions,
  type PushProgress,
  type PushResult,
  pushModel,
} from "./hub/push-model.js";
export * from "./model/index.js";
export * from "./nn/index.js";
export * from "./ops/index.js";
export * from "./optim/index.js";
export { flopsPerToken, modelFlopsUtilisation } from "./plan/flops.js";
export type { Gpu, Rate as GpuRate } from "./plan/gpus.js";
export type { MemoryPlan } from "./plan/memory.js";
export { planRun, type RunPlan, type TimeEstimate } from "./plan/plan.js";
export type { MachineOptions, ScalingPlan, StrategyPlan } from "./plan/scaling.js";
export {
  type PrepareOptions,
  type PrepareProgress,
  type PrepareResult,
  prepare,
} from "./prepare/prepare.js";
export type { Input as PrepareInput } from "./prepare/schema.js";
export type { TokenizerInput } from "./prepare/tokenizer/schema.js";
export {
  type TrainTokenizerOptions,
  type TrainTokenizerProgress,
  type TrainTokenizerResult,
  trainTokenizer,
} from "./prepare/tokenizer/train-tokenizer.js";
export { writeReport } from "./report/html.js";
export { type RunningServer, type ServeOptions, serve } from "./serve/server.js";
export type { DeviceWaitMs, PauseMs, WaitTotals } from "./train/device-waits.js";
export type { Collections } from "./train/host-meter.js";
export type { Sample, StepMetrics, TaskScore, Validation } from "./train/metrics.js";
export { type Measured, nextTokens, type Objective } from "./train/objective.js";
export { PreferenceObjective } from "./train/preference-objective.js";
export type { HostStep, RunTimeTotals } from "./train/run-times.js";
export type { SkipLimits } from "./train/skips.js";
export { type RunningStep, type StepOptions, trainStep } from "./train/step.js";
export {
  type BatchSource,
  type Progress,
  type Saver,
  type StepRecords,
  Trainer,
  type TrainerOptions,
  type TrainerParts,
  type TrainerResult,
} from "./train/trainer.js";
