// Every exported function and class of the library, with valid arguments.
import { mkdtemp } from "node:fs/promises";
import { join } from "node:path";
import { freePort } from "../../../dist/dist/free-port.js";

const library = await import("../../../dist/index.js");
const { zeros, ones, cpu, llamaConfig, Llama, Linear, AdamW, ParameterStore } = library;

const exported = Object.keys(library);
const fields = {
  vocabSize: 4096,
  hiddenSize: 32,
  intermediateSize: 48,
  layers: 1,
  heads: 2,
  kvHeads: 1,
  contextLength: 32,
  ropeTheta: 10_000,
  rmsNormEps: 1e-5,
  tieEmbeddings: false,
};
const x = () => ones([2, 3]);
const ids = () => zeros([2, 4], { dtype: "i32" });
const model = () => Llama.create(llamaConfig(fields), { seed: 1 });
const unary = [
  "abs",
  "cos",
  "exp",
  "gelu",
  "log",
  "neg",
  "reciprocal",
  "relu",
  "rsqrt",
  "sigmoid",
].concat(["silu", "sin", "sqrt", "square", "tanh", "argmax"]);
const binary = ["add", "sub", "mul", "div", "minimum", "maximum", "pow"].concat([
  "eq",
  "ne",
  "lt",
  "le",
  "gt",
  "ge",
]);
const reductions = ["sum", "mean", "max", "min"];
const _row = { folder: "data", split: "train" };
const guard = { zLoss: 3, zGradNorm: 3, window: 8, minimumHistory: 4 };
const world = (port) => ({
  rank: 0,
  worldSize: 1,
  localRank: 0,
  localWorldSize: 1,
  host: "127.0.0.1",
  port,
  runId: "run",
  launcher: "torchrun",
});
const cluster = {
  device: cpu,
  strategy: "replicated",
  reduce: "fp32",
  timeoutMs: 200,
  startTimeoutMs: 200,
};
const served = { port: 0, modelName: "m", apiKeys: ["k"], corsOrigins: ["*"], maxConnections: 1 };
const timeline = () => ({
  rank: 0,
  spans: [{ kind: "compute", name: "forward", startMs: 0, endMs: 1 }],
  steps: [{ startMs: 0, endMs: 1 }],
});
async function store() {
  const port = await freePort();
  const options = { host: "127.0.0.1", port, rank: 0, worldSize: 1, token: "t", timeoutMs: 200 };
  return await library.Store.connect(options);
}
async function communicator() {
  const joined = await store();
  const options = { store: joined, device: cpu, name: "g", ranks: [0], rank: 0, timeoutMs: 200 };
  return { joined, comm: await library.Communicator.create(options) };
}

/** Functions with their arguments. */
function functions(folder) {
  const data = join(folder, "data");
  const tokenizer = join(folder, "tokenizer");
  const runConfig = (out) => ({
    out,
    steps: 2,
    precision: "fp32",
    model: fields,
    data: { train: { [data]: 1 } },
    batch: { microBatch: 2 },
    optimizer: { peakLr: 1e-3, warmupSteps: 1 },
  });
  return {
    ...Object.fromEntries(unary.map((name) => [name, () => [x()]])),
    ...Object.fromEntries(binary.map((name) => [name, () => [x(), x()]])),
    ...Object.fromEntries(reductions.map((name) => [name, () => [x(), 0, { keepAxes: true }]])),
    addRmsNorm: () => [x(), x(), ones([3]), 1e-5],
    arange: () => [0, 4, 1, { dtype: "f32", device: cpu, requiresGrad: false }],
    attention: () => [
      ones([1, 2, 8]),
      { heads: 2, kvHeads: 1, scale: 1, firstKey: zeros([1, 2], { dtype: "i32" }) },
    ],
    attentionCached: () => [
      ones([1, 1, 8]),
      zeros([1, 2, 1, 4, 2]),
      { heads: 2, kvHeads: 1, position: 0, firstKey: zeros([1, 1], { dtype: "i32" }) },
    ],
    attentionPaged: () => [
      ones([1, 1, 8]),
      zeros([2, 2, 1, 32, 2]),
      {
        table: zeros([1, 2], { dtype: "i32" }),
        sequences: zeros([1, 1], { dtype: "i32" }),
        positions: zeros([1, 1], { dtype: "i32" }),
        firstKey: zeros([1, 1], { dtype: "i32" }),
      },
      { heads: 2, kvHeads: 1, scale: 1, angles: ones([2, 1, 2]) },
    ],
    broadcastTo: () => [x(), [4, 2, 3]],
    buildInfo: () => [],
    cast: () => [x(), "bf16"],
    checkGradients: () => [(a) => library.sum(a), [x()], { eps: 1e-2, tolerance: 1, seed: 1 }],
    chromeTrace: () => [[timeline()]],
    concat: () => [[x(), x()], 0],
    cosineSchedule: () => [{ peakLr: 1, minLr: 0, warmupSteps: 1, decaySteps: 10 }],
    crossEntropy: () => [x(), zeros([2], { dtype: "i32" }), {}],
    cuda: () => [0],
    defaultDevice: () => [],
    describeWorld: () => [world(1)],
    documentStarts: () => [new Int32Array(10), 4, () => ({ startId: 0, endId: 1 })],
    dropout: () => [x(), { rate: 0.5, seed: 1, offset: 3 }],
    embedding: () => [ids(), ones([4, 2])],
    empty: () => [[2, 3], { dtype: "f32", device: cpu }],
    flopsPerToken: () => [llamaConfig(fields), 32],
    fromHuggingFace: () => [library.toHuggingFace(llamaConfig(fields), {}), "here"],
    full: () => [[2, 3], 1, { dtype: "f32" }],
    gather: () => [x(), zeros([2], { dtype: "i32" }), 1],
    grad: () => [(a) => library.sum(a)],
    headNorm: () => [ones([1, 2, 16]), ones([4]), ones([4]), { heads: 2, kvHeads: 1, eps: 1e-6 }],
    keep: () => [x()],
    latestIds: () => [ids(), zeros([2], { dtype: "i32" }), zeros([4], { dtype: "i32" })],
    linear: () => [x(), ones([4, 3])],
    frozenLinear: () => [ones([4, 3]), ones([4])],
    adaptedLinear: () => [
      x(),
      library.frozenLinear(ones([4, 3])),
      { down: ones([2, 3]), up: ones([4, 2]), parts: [{ firstRow: 0, rows: 4 }], scale: 2 },
    ],
    linearCrossEntropy: () => [x(), ones([4, 3]), zeros([2], { dtype: "i32" }), {}],
    linearTargetScores: () => [x(), ones([4, 3]), zeros([2], { dtype: "i32" })],
    normLinear: () => [x(), x(), ones([3]), ones([4, 3]), { eps: 1e-5, swiglu: true }],
    linearTokenLosses: () => [x(), ones([4, 3]), zeros([2], { dtype: "i32" }), {}],
    llamaConfig: () => [fields],
    loadConfig: () => [join(folder, "run.yaml"), ["steps=3"]],
    loadModel: () => [join(folder, "saved"), { device: cpu, dtype: "f32", training: false }],
    logSoftmax: () => [x(), -1],
    matmul: () => [x(), ones([3, 2])],
    memory: () => [cpu],
    modelFlopsUtilisation: () => [1, 1, 1],
    noGrad: () => [() => 1],
    ones: () => [[2, 3], { dtype: "f32", device: cpu, requiresGrad: true }],
    openCheckpoint: () => [join(folder, "none"), { hashes: true }],
    openNewest: () => [folder, { hashes: true, onWarning: () => {} }],
    parameterCount: () => [llamaConfig(fields)],
    parseConfig: () => ["steps: 3", "here"],
    parseDevice: () => ["cpu"],
    permute: () => [x(), [1, 0]],
    planRun: () => [library.resolveConfig(runConfig("out")), { gpus: 1, gpu: "H200" }],
    preferenceLoss: () => [
      { policy: ones([4]), reference: zeros([4]), lengths: ones([4]) },
      { loss: "sigmoid", beta: 0.1, labelSmoothing: 0.1 },
    ],
    rand: () => [[2, 3], { seed: 1, low: 0, high: 1, offset: 0 }],
    randn: () => [[2, 3], { seed: 1, mean: 0, std: 1, offset: 0 }],
    readDecision: () => [new Float32Array(8)],
    readSafetensors: () => [
      join(folder, "saved", "model.safetensors"),
      { followLinks: true, headerBytesLimit: 1e6 },
    ],
    readWorld: () => [
      { RANK: "0", WORLD_SIZE: "2", MASTER_ADDR: "h", MASTER_PORT: "1", LOCAL_RANK: "0" },
    ],
    recompute: () => ["block", [x()], (a) => [library.exp(a)]],
    resetPeakMemory: () => [cpu],
    ready: () => [cpu],
    segmentSum: () => [ones([2]), zeros([2], { dtype: "i32" }), 1],
    reshape: () => [x(), [3, 2]],
    resolveConfig: () => [runConfig("out")],
    rmsNorm: () => [x(), ones([3]), 1e-5],
    rope: () => [
      ones([1, 2, 4]),
      library.ropeTable(4, 2),
      { heads: 2, rotatedHeads: 1, position: 0, positions: zeros([1, 2], { dtype: "i32" }) },
    ],
    ropeTable: () => [4, 2, 10_000, cpu],
    sample: () => [x(), { seed: 1, temperature: 1, topK: 1, topP: 1, offset: 0 }],
    sampleRows: () => [
      x(),
      [
        { seed: 1, temperature: 1, topK: 1, topP: 1, offset: 0, minP: 0 },
        {
          seed: 1,
          repetitionPenalty: 1,
          presencePenalty: 0,
          frequencyPenalty: 0,
          counts: 0,
          bias: 0,
        },
      ],
      { counts: zeros([1, 3], { dtype: "i32" }), bias: zeros([1, 3]) },
    ],
    exportGguf: () => ["no-such-model", "exported.gguf", { type: "q8_0", tokenizer: false }],
    exportHuggingFace: () => ["no-such-model", "exported-folder", { dtype: "float16" }],
    downloadModel: () => ["no-such-model", { parts: "tokenizer" }],
    pushModel: () => ["no-such-model", "no-such-name", { message: "a", public: false }],
    trainTokenizer: () => [{ inputs: ["no-such-text"], out: "own-tokenizer", vocabSize: 300 }],
    mergeAdapter: () => ["no-such-adapter", "merged-folder", { base: "none", dtype: "float16" }],
    saveModel: async () => ["saved-again", await model(), { shardBytes: 1e6 }],
    scope: () => [() => x()],
    serve: async () => {
      const tokens = await library.Tokenizer.load(tokenizer);
      return [new library.Engine(await model(), tokens, { pageSize: 32, maxBatch: 1 }), served];
    },
    setDefaultDevice: () => [cpu],
    setMemoryLimit: () => [0, cpu],
    setThreads: () => [library.buildInfo().threads],
    slice: () => [x(), [0, 0], [1, 2]],
    softmax: () => [x(), -1],
    split: () => [x(), [1, 1], 0],
    squeeze: () => [ones([1, 2]), 0],
    stack: () => [[x(), x()], 0],
    summariseTimeline: () => [timeline()],
    swiglu: () => [ones([2, 4])],
    synchronize: () => [cpu],
    tensor: () => [
      [
        [1, 2],
        [3, 4],
      ],
      { shape: [2, 2], dtype: "f32", device: cpu, requiresGrad: true },
    ],
    toHuggingFace: () => [llamaConfig(fields), { bosId: 1, eosId: 2, dtype: "f32" }],
    trainStep: async () => {
      const made = await model();
      const nextBatch = async () => ({
        inputs: new Int32Array(8),
        targets: new Int32Array(8),
        count: 2,
      });
      const optimizer = new AdamW(made.store);
      return [
        {
          model: made,
          optimizer,
          nextBatch,
          accumulation: 1,
          lr: 1e-3,
          clip: 1,
          masked: false,
          objective: library.nextTokens,
        },
      ];
    },
    transpose: () => [x(), 0, 1],
    unsqueeze: () => [x(), 0],
    verifyCheckpoint: () => [join(folder, "none"), { hashes: true }],
    batchTensors: () => [
      {
        inputs: new Int32Array(8),
        targets: new Int32Array(8),
        firstKey: new Int32Array(8),
        positions: new Int32Array(8),
        count: 2,
      },
      cpu,
    ],
    costOf: () => [llamaConfig(fields)],
    createModel: () => [
      llamaConfig(fields),
      { device: cpu, dtype: "f32", seed: 1, training: true },
    ],
    verifyDataset: () => [data],
    endTokens: () => [join(folder, "saved")],
    where: () => [x(), x(), x()],
    writeParameter: async () => [(await model()).norm.weight, ones([32])],
    writeReport: () => [folder, "report.html"],
    writeSafetensors: () => [
      "written.safetensors",
      [{ name: "a", dtype: "F32", shape: [2], bytes: () => new Uint8Array(8) }],
      { key: "value" },
    ],
    wsdSchedule: () => [
      { peakLr: 1, minLr: 0, warmupSteps: 1, decayFrom: 5, decaySteps: 10, decayShape: "sqrt" },
    ],
    writeRow: () => [x(), 0, ones([3])],
    zeros: () => [[2, 3], { dtype: "f32", device: cpu, requiresGrad: false }],
    evaluate: async () => [
      await model(),
      "text:own.txt",
      {
        tokenizer: await library.Tokenizer.load(tokenizer),
        data,
        limit: 1,
        fewShot: 0,
        seed: 1,
        batch: 1,
        bootstrap: 0,
      },
    ],
    generate: async () => [
      await model(),
      await library.Tokenizer.load(tokenizer),
      "a",
      { maxTokens: 1, seed: 1 },
    ],
    generateTokens: async () => [
      await model(),
      [1, 2],
      { maxTokens: 1, temperature: 1, topK: 2, topP: 1, seed: 1, stopAt: null },
    ],
  };
}

/**
 * Classes with the arguments of their constructors. Classes made by `static` functions have none.
 */
function constructors(folder) {
  const data = join(folder, "data");
  const tokenizer = join(folder, "tokenizer");
  const strategy = async () => {
    const { joined, comm } = await communicator();
    return { args: [{ world: comm, reduce: "fp32" }], after: async () => await joined.close() };
  };
  return {
    AdamW: async () => [
      (await model()).store,
      { beta1: 0.9, beta2: 0.9, eps: 1e-8, weightDecay: 0, decay: "all", guard },
    ],
    Cluster: () => [],
    Communicator: () => [],
    Embedding: () => [4, 2, 1],
    Engine: async () => [
      await model(),
      await library.Tokenizer.load(tokenizer),
      { maxBatch: 1, maxQueue: 1, maxLength: 32, pageSize: 32, promptTokens: 8, prefixCache: true },
    ],
    FullShard: strategy,
    Linear: () => [4, 2, 1],
    LanguageModel: () => [],
    Llama: () => [llamaConfig(fields)],
    Muon: async () => [
      (await model()).store,
      {
        beta1: 0.9,
        beta2: 0.9,
        eps: 1e-8,
        weightDecay: 0,
        decay: "all",
        guard,
        momentum: 0.9,
        exclude: [],
      },
    ],
    LoraModel: async () => [
      await model(),
      { rank: 2, alpha: 4, targets: ["q_proj", "up_proj"], dropout: 0.1 },
    ],
    Loader: async () => {
      const dataset = await library.TokenDataset.open(data, { sequenceLength: 8 });
      const args = [
        dataset,
        {
          batchSize: 2,
          startPosition: 0,
          prefetch: 1,
          rank: 0,
          worldSize: 1,
          slowAfterMs: 1000,
          limitMs: 1000,
        },
      ];
      return { args, after: async () => await dataset.close() };
    },
    Mixture: () => [],
    Module: () => [],
    Parameter: () => [[2, 3], { kind: "normal", std: 1 }],
    ParameterGroup: () => [],
    ParameterStore: () => [
      new Linear(4, 2, 1),
      { device: cpu, dtype: "f32", seed: 1, training: true },
    ],
    PreferenceObjective: async () => [{ loss: "ipo", beta: 0.1 }, await model()],
    RMSNorm: () => [4, 1e-5],
    Replicated: strategy,
    Store: () => [],
    Tensor: () => [],
    TokenDataset: () => [],
    Tokenizer: () => [],
    Trainer: async () => {
      const made = await model();
      const batches = { next: async () => ({}) };
      return [
        {
          model: made,
          optimizer: new AdamW(made.store),
          batches,
          schedule: () => 1,
          steps: 1,
          accumulation: 1,
          clip: 1,
          masked: false,
          guard: { maxConsecutiveSkips: 1, maxSkipsPerWindow: 1, window: 2 },
          progress: { step: 0, tokens: 0, position: 0, skips: [] },
          validate: { every: 1, measure: async () => ({ loss: 1, bitsPerByte: null }) },
          sample: { every: 1, write: async () => [] },
        },
      ];
    },
    Zero1: strategy,
  };
}

/** Methods: the function, its object and its arguments. */
function methods(folder) {
  const data = join(folder, "data");
  let tokenizer = null;
  const open = () => {
    tokenizer ??= library.Tokenizer.load(join(folder, "tokenizer"));
    return tokenizer;
  };
  const mixture = () => library.Mixture.open({ [data]: 1 }, { sequenceLength: 8 });
  const held = (object) => ({ object, after: async () => await object.close() });
  const linear = async () => {
    const object = new Linear(3, 2, 1);
    new ParameterStore(object, { seed: 1 });
    return { object };
  };
  const group = async () => {
    const { joined, comm } = await communicator();
    return {
      object: comm,
      after: async () => {
        try {
          await comm.close();
        } finally {
          await joined.close();
        }
      },
    };
  };
  const of = async (object) => ({ object: await object });
  const optimizer = async () => of(new AdamW((await model()).store));
  const oneStore = async () => of((await model()).store);
  const statics = (name) => async () => ({ object: library[name] });
  return [
    ["Tensor", "isTensor", statics("Tensor"), () => [x()]],
    [
      "Llama",
      "create",
      statics("Llama"),
      () => [llamaConfig(fields), { device: cpu, dtype: "f32", seed: 1, training: true }],
    ],
    [
      "LoraModel",
      "create",
      statics("LoraModel"),
      async () => [await model(), { rank: 2, alpha: 4, targets: ["v_proj"] }, { seed: 1 }],
    ],
    ["Tokenizer", "load", statics("Tokenizer"), () => [join(folder, "tokenizer")]],
    [
      "TokenDataset",
      "open",
      statics("TokenDataset"),
      () => [data, { sequenceLength: 8, split: "train" }],
    ],
    [
      "Mixture",
      "open",
      statics("Mixture"),
      () => [
        { [data]: 1 },
        {
          sequenceLength: 8,
          seed: 1,
          split: "train",
          device: cpu,
          rank: 0,
          worldSize: 1,
          maskDocuments: true,
        },
      ],
    ],
    [
      "Store",
      "connect",
      statics("Store"),
      async () => [
        {
          host: "127.0.0.1",
          port: await freePort(),
          rank: 0,
          worldSize: 1,
          token: "t",
          timeoutMs: 200,
          oneHost: true,
        },
      ],
    ],
    [
      "Communicator",
      "create",
      statics("Communicator"),
      async () => [
        {
          store: await store(),
          device: cpu,
          name: "g",
          ranks: [0],
          rank: 0,
          timeoutMs: 200,
          startTimeoutMs: 200,
          onFailure: () => {},
        },
      ],
    ],
    ["Cluster", "connect", statics("Cluster"), async () => [world(await freePort()), cluster]],
    [
      "Trainer",
      "create",
      statics("Trainer"),
      async () => {
        const out = join(await mkdtemp(join(folder, "run-")), "out");
        const config = library.resolveConfig({
          out,
          steps: 2,
          precision: "fp32",
          model: fields,
          data: { train: { [data]: 1 } },
          batch: { microBatch: 2 },
          optimizer: { peakLr: 1e-3, warmupSteps: 1 },
        });
        return [config, { resume: "none", allowDataChange: false, onNotice: () => {} }];
      },
      "slow",
    ],
    ...["item", "toArray", "toBytes", "dispose", "zeroGrad", "detach", "toString"].map((name) => [
      "Tensor",
      name,
      () => of(x()),
      () => [],
    ]),
    ["Tensor", "view", () => of(x()), () => [[3, 2], 0]],
    [
      "Tensor",
      "backward",
      () => of(library.sum(ones([2], { requiresGrad: true }))),
      () => [{ gradient: undefined, scale: 1 }],
    ],
    ["Linear", "forward", linear, () => [x()]],
    ["Module", "namedParameters", linear, () => ["prefix"]],
    ["Module", "freeze", linear, () => ["weight"]],
    ["Module", "unfreeze", linear, () => ["weight"]],
    ["Module", "train", linear, () => [true]],
    ["Llama", "forward", () => of(model()), () => [ids(), undefined, {}]],
    ["Llama", "hidden", () => of(model()), () => [ids(), undefined, {}]],
    [
      "Llama",
      "loss",
      () => of(model()),
      () => [{ inputs: ids(), targets: ids(), firstKey: ids(), positions: ids() }],
    ],
    ["Llama", "targetLosses", () => of(model()), () => [{ inputs: ids(), targets: ids() }]],
    ["Llama", "inTraining", () => of(model()), () => [0, () => 1]],
    ["Llama", "tokenLosses", () => of(model()), () => [{ inputs: ids(), targets: ids() }]],
    [
      "Llama",
      "allocate",
      async () => ({ object: new library.Llama(llamaConfig(fields)) }),
      () => [{ device: cpu, dtype: "f32", seed: 1, training: true }],
    ],
    ["ParameterStore", "wholeWeights", oneStore, () => [null]],
    ["ParameterStore", "holds", oneStore, () => [null, 0, 1]],
    ["Llama", "createCache", () => of(model()), () => [1, 8]],
    ["AdamW", "step", optimizer, () => [{ lr: 1, clip: 1, loss: ones([]) }]],
    ["AdamW", "moments", optimizer, () => [null]],
    ["ParameterStore", "placeOf", oneStore, () => [null]],
    ["ParameterStore", "whole", oneStore, () => [null, x()]],
    [
      "Tokenizer",
      "encode",
      () => of(open()),
      () => ["text", { bos: false, eos: false, specialTokens: "text" }],
    ],
    ["Tokenizer", "encodeBatch", () => of(open()), () => [["text"], { bos: false }]],
    [
      "Tokenizer",
      "encodeParts",
      () => of(open()),
      () => [[{ text: "a", continues: false }], "text"],
    ],
    ["Tokenizer", "decode", () => of(open()), () => [[1, 2], { specialTokens: "skip" }]],
    ["Tokenizer", "decodeStream", () => of(open()), () => [{ specialTokens: "skip" }]],
    ["Tokenizer", "token", () => of(open()), () => [1]],
    ["Tokenizer", "tokenBytes", () => of(open()), () => [1]],
    [
      "Tokenizer",
      "assertFits",
      () => of(open()),
      () => [{ vocabSize: 4096, bosId: null, eosId: null }],
    ],
    [
      "ChatTemplate",
      "render",
      async () => ({ object: library.ChatTemplate.of("{{ messages[0].role }}", await open()) }),
      () => [
        [{ role: "user", content: "a" }],
        { addGenerationPrompt: true, variables: { thinking: false } },
      ],
    ],
    ["Tokenizer", "copyTo", () => of(open()), () => ["copied"]],
    [
      "TokenDataset",
      "read",
      async () => held(await library.TokenDataset.open(data, { sequenceLength: 8 })),
      () => [0, new Int32Array(9)],
    ],
    ["Mixture", "locate", async () => held(await mixture()), () => [0]],
    ["Mixture", "epochsAt", async () => held(await mixture()), () => [0]],
    ["Mixture", "read", async () => held(await mixture()), () => [0, 1]],
    ["Mixture", "marksAt", async () => held(await mixture()), () => [0]],
    ["Mixture", "next", async () => held(await mixture()), () => [1]],
    ["Mixture", "loader", async () => held(await mixture()), () => [1, 0, { prefetch: 1 }]],
    ["Store", "set", async () => held(await store()), () => ["key", "value"]],
    ["Store", "get", async () => held(await store()), () => ["key", { timeoutMs: 10 }]],
    ["Store", "add", async () => held(await store()), () => ["key", 1]],
    ["Store", "barrier", async () => held(await store()), () => ["name", { timeoutMs: 10 }]],
    ["Store", "onFailure", async () => held(await store()), () => [() => {}]],
    ["Communicator", "allReduce", group, () => [x(), "sum"]],
    ["Communicator", "reduceScatter", group, () => [x(), x(), "sum"]],
    ["Communicator", "allGather", group, () => [x(), x()]],
    ["Communicator", "broadcast", group, () => [x(), 0]],
  ];
}

/** Errors with the arguments of their constructors. */
const errors = {
  LlamaForgeError: ["message", "ERR_CODE", 1],
  ConfigError: ["here", [{ path: "a", message: "is wrong" }]],
  NativeError: ["message", "ERR_CODE"],
};

const slow = new Set([
  "prepare",
  "serve",
  "saveModel",
  "trainStep",
  "generate",
  "generateTokens",
  "evaluate",
  "loadModel",
]);
const heavy = new Set(["Cluster", "FullShard", "Replicated", "Zero1", "Store", "Communicator"]);

/** All targets. `make` returns the function, its arguments, and the clean-up after each call. */
export function targets(folder) {
  const list = [];
  for (const [name, args] of Object.entries(functions(folder))) {
    const make = async () => ({ of: library[name], args: await args() });
    list.push({ name, slow: slow.has(name), make });
  }
  for (const [name, given] of Object.entries(constructors(folder))) {
    const of = (...args) => new library[name](...args);
    const make = async () => {
      const made = await given();
      return Array.isArray(made) ? { of, args: made } : { of, ...made };
    };
    list.push({ name: `new ${name}`, slow: heavy.has(name), make });
  }
  for (const [name, method, holder, args, pace] of methods(folder)) {
    const make = async () => {
      const { object, after } = await holder();
      return { of: (...given) => object[method](...given), args: await args(), after };
    };
    list.push({
      name: `${name}.${method}`,
      slow: pace === "slow" || heavy.has(name) || name === "Mixture",
      make,
    });
  }
  for (const [name, value] of Object.entries(library)) {
    if (typeof value !== "function" || !(value.prototype instanceof Error)) continue;
    const make = async () => ({
      of: (...args) => new value(...args),
      args: errors[name] ?? ["message"],
    });
    list.push({ name: `new ${name}`, slow: true, make });
  }
  return list;
}

/**
 * Exported functions that are not targets. `prepare` has its own test (test/data/prepare.test.ts).
 */
export function missing(folder) {
  const named = new Set(["prepare"]);
  for (const { name } of targets(folder)) named.add(name.replace(/^new /, "").split(".")[0]);
  return exported.filter((name) => typeof library[name] === "function" && !named.has(name));
}
