// docs/faults.md, row I2: the package has its files and entry points, and runs no script at
// install.
import { execFileSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, test } from "vitest";
import * as surface from "../../lib/index.js";
import { buildLibrary, root } from "../cli/build.js";

const manifest = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));
beforeAll(() => buildLibrary());

describe("the package", () => {
  test("contains what it runs on and nothing else", () => {
    const text = execFileSync("npm", ["pack", "--dry-run", "--json", "--ignore-scripts"], {
      cwd: root,
      encoding: "utf8",
      stdio: ["ignore", "pipe", "ignore"],
    });
    const [{ files }] = JSON.parse(text) as [{ files: { path: string }[] }];
    const paths = files.map(({ path }) => path);
    for (const wanted of [
      "dist/index.js",
      "dist/cli/main.js",
      "assets/quickstart/tokenizer.json",
      "configs/quickstart.yaml",
      "LICENSE",
      "README.md",
    ]) {
      expect(paths).toContain(wanted);
    }
    const folders = new Set(
      paths.filter((path) => path.includes("/")).map((path) => path.split("/")[0]),
    );
    const allowed = ["dist", "prebuilds", "assets", "configs", "bench", "docs", "examples"];
    expect([...folders].filter((folder) => !allowed.includes(folder as string))).toEqual([]);
  });

  test("runs no script when it is installed, and pins what it needs in a lock file", () => {
    for (const hook of ["preinstall", "postinstall", "prepare"])
      expect(manifest.scripts[hook]).toBe(undefined);
    expect(manifest.gypfile).toBe(false);
    const lock = JSON.parse(readFileSync(join(root, "package-lock.json"), "utf8"));
    expect(lock.packages[""].dependencies).toEqual(manifest.dependencies);
    expect(lock.packages[""].devDependencies).toEqual(manifest.devDependencies);
  });

  test("its entry points are there, and require() of it works as import does", () => {
    expect(existsSync(join(root, manifest.bin.llamaforge))).toBe(true);
    const program =
      "const { Llama, presets } = require('llamaforge'); console.log(typeof Llama.create, presets.quickstart.layers)";
    const required = process.features as { require_module?: boolean };
    const flags = required.require_module ? [] : ["--experimental-require-module"];
    const text = execFileSync(process.execPath, [...flags, "--no-warnings", "-e", program], {
      cwd: root,
      encoding: "utf8",
    });
    expect(text.trim()).toBe("function 6");
  });
});

test("the public surface is this list; a change of it is a decision", () => {
  expect(Object.keys(surface).sort()).toEqual([
    "AdamW",
    "ArgumentError",
    "AutogradError",
    "ChatTemplate",
    "CheckpointError",
    "Cluster",
    "Communicator",
    "ConfigError",
    "CorruptionError",
    "DTypeError",
    "DataError",
    "DeviceError",
    "DisposedError",
    "DivergedError",
    "Embedding",
    "Engine",
    "FullShard",
    "LanguageModel",
    "Linear",
    "Llama",
    "LlamaForgeError",
    "Loader",
    "LoraModel",
    "Mixture",
    "Module",
    "Muon",
    "NativeError",
    "NoTokensError",
    "NonFiniteError",
    "OutOfMemoryError",
    "Parameter",
    "ParameterGroup",
    "ParameterStore",
    "PeerError",
    "PreferenceObjective",
    "QueueFullError",
    "RMSNorm",
    "Replicated",
    "ResourceError",
    "ShapeError",
    "StorageError",
    "Store",
    "Tensor",
    "TokenDataset",
    "Tokenizer",
    "TokenizerError",
    "Trainer",
    "UsageError",
    "Zero1",
    "abs",
    "adaptedLinear",
    "add",
    "addRmsNorm",
    "arange",
    "argmax",
    "attention",
    "attentionCached",
    "attentionPaged",
    "batchTensors",
    "broadcastTo",
    "buildInfo",
    "cast",
    "checkGradients",
    "chromeTrace",
    "concat",
    "cos",
    "cosineSchedule",
    "costOf",
    "cpu",
    "createModel",
    "crossEntropy",
    "cuda",
    "defaultDevice",
    "describeWorld",
    "div",
    "documentStarts",
    "downloadModel",
    "dropout",
    "embedding",
    "empty",
    "endTokens",
    "eq",
    "evaluate",
    "exitCodes",
    "exp",
    "exportGguf",
    "exportHuggingFace",
    "finiteGuard",
    "flopsPerToken",
    "fromHuggingFace",
    "frozenLinear",
    "full",
    "gather",
    "ge",
    "gelu",
    "generate",
    "generateTokens",
    "grad",
    "gt",
    "headNorm",
    "keep",
    "latestIds",
    "le",
    "linear",
    "linearCrossEntropy",
    "linearTargetScores",
    "linearTokenLosses",
    "llamaConfig",
    "loadConfig",
    "loadModel",
    "log",
    "logSoftmax",
    "loraTargets",
    "lt",
    "matmul",
    "max",
    "maximum",
    "mean",
    "memory",
    "mergeAdapter",
    "min",
    "minimum",
    "modelFlopsUtilisation",
    "mul",
    "ne",
    "neg",
    "nextTokens",
    "noGrad",
    "normLinear",
    "ones",
    "openCheckpoint",
    "openNewest",
    "parameterCount",
    "parseConfig",
    "parseDevice",
    "permute",
    "planRun",
    "pow",
    "preferenceFigures",
    "preferenceLoss",
    "preferenceLosses",
    "prepare",
    "presets",
    "promptToken",
    "pushModel",
    "rand",
    "randn",
    "readDecision",
    "readSafetensors",
    "readWorld",
    "ready",
    "reciprocal",
    "recompute",
    "relu",
    "resetPeakMemory",
    "reshape",
    "resolveConfig",
    "rmsNorm",
    "rope",
    "ropeTable",
    "rsqrt",
    "sample",
    "sampleRows",
    "saveModel",
    "scope",
    "segmentSum",
    "serve",
    "setDefaultDevice",
    "setMemoryLimit",
    "setThreads",
    "sigmoid",
    "silu",
    "sin",
    "slice",
    "softmax",
    "split",
    "sqrt",
    "square",
    "squeeze",
    "stack",
    "sub",
    "sum",
    "summariseTimeline",
    "swiglu",
    "synchronize",
    "tanh",
    "tensor",
    "toHuggingFace",
    "trainStep",
    "trainTokenizer",
    "transpose",
    "unsqueeze",
    "verifyCheckpoint",
    "verifyDataset",
    "where",
    "writeParameter",
    "writeReport",
    "writeRow",
    "writeSafetensors",
    "wsdSchedule",
    "zeros",
  ]);
});
