import { type Command, Option } from "commander";
import { parseDevice } from "../core/device.js";
import { section } from "../core/option-kinds.js";
import { generateSchema, maxTokens, samplingOptions } from "../generate/schema.js";
import { modelFolder, ofCheckpoint } from "./model-folder.js";
import { addOptions, givenOptions } from "./options.js";
import { print, printResult } from "./terminal.js";

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
