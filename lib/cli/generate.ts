import { access } from "node:fs/promises";
import { join } from "node:path";
import { type Command, Option } from "commander";
import { parseDevice } from "../core/device.js";
import { CheckpointError, NonFiniteError, UsageError } from "../core/errors.js";
import { section } from "../core/option-kinds.js";
import { generateSchema, maxTokens, samplingOptions } from "../generate/schema.js";
import { addOptions, givenOptions } from "./options.js";
import { print, printError, printResult } from "./terminal.js";

/** The options of generation that are available on the command line. */
const flags = section("how a text is continued", {
  maxTokens: maxTokens(1, 1e9).default(200),
  ...samplingOptions,
  seed: generateSchema.shape.seed,
});

interface PlaceOptions {
  device: string;
  precision: "fp32" | "bf16";
}

export function addGenerate(program: Command): void {
  const command = program
    .command("generate")
    .description("continue a text with a trained model")
    .argument("<folder>", "a run, a checkpoint, or a Hugging Face folder")
    .argument("<prompt>", "beginning of the text; empty for a new document");
  addOptions(command, flags.shape, "set")
    .option("--device <device>", "cpu, cuda or cuda:N", "cpu")
    .addOption(
      new Option("--precision <p>", "of weights and activations")
        .choices(["fp32", "bf16"])
        .default("fp32"),
    )
    .action(run);
}

async function run(
  folder: string,
  prompt: string,
  options: PlaceOptions,
  command: Command,
): Promise<void> {
  const device = parseDevice(options.device);
  const [{ loadModel }, { generate }, { Tokenizer }] = await Promise.all([
    import("../checkpoint/model.js"),
    import("../generate/generate.js"),
    import("../data/tokenizer.js"),
  ]);
  const place = await modelFolder(folder);
  const tokenizer = await Tokenizer.load(place);
  const model = await loadModel(place, {
    device,
    dtype: options.precision === "bf16" ? "bf16" : "f32",
  });
  tokenizer.assertFits({ vocabSize: model.config.vocabSize });
  printResult(prompt);
  const settings = flags.parse(givenOptions(command, flags.shape));
  try {
    for await (const piece of generate(model, tokenizer, prompt, settings)) {
      printResult(piece);
      // The reader of the output has stopped, e.g. `| head`.
      if (process.stdout.destroyed) break;
    }
  } catch (error) {
    print("\n");
    throw ofCheckpoint(error, place);
  }
  print("\n");
  model.dispose();
}

/** Reports non-finite weights as a fault of the files that they came from. */
function ofCheckpoint(error: unknown, place: string): unknown {
  if (!(error instanceof NonFiniteError) || error.tensors.length === 0) return error;
  return new CheckpointError(`${place}: ${error.message}`, { cause: error });
}

/** The given folder if it holds a model; for a run's folder, its newest checkpoint. */
async function modelFolder(folder: string): Promise<string> {
  const isModel = await access(join(folder, "config.json")).then(
    () => true,
    () => false,
  );
  if (isModel) return folder;
  const { openNewest } = await import("../checkpoint/load.js");
  const newest = await openNewest(folder, {
    hashes: false,
    onWarning: (message) => printError(`warning: ${message}\n`),
  });
  if (newest === null) {
    throw new UsageError(
      `${folder}: expected a folder with config.json, or a run with checkpoints in it`,
    );
  }
  return newest.path;
}
