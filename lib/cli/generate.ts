import type { Command } from "commander";
import { parseDevice } from "../core/device.js";
import { DataError } from "../core/errors.js";
import { section } from "../core/option-kinds.js";
import { answerSchema } from "../generate/engine-schema.js";
import { maxTokens } from "../generate/schema.js";
import {
  addPlaceOptions,
  dtypeOf,
  modelFolder,
  ofCheckpoint,
  type PlaceOptions,
} from "./model-folder.js";
import { addOptions, givenOptions } from "./options.js";
import { print, printResult } from "./terminal.js";

const { temperature, topK, topP, minP, seed, stop } = answerSchema.shape;
const { repetitionPenalty, presencePenalty, frequencyPenalty } = answerSchema.shape;

/** The options of an answer that are available on the command line, besides its length. */
export const answerFlags = {
  temperature,
  topK,
  topP,
  minP,
  repetitionPenalty,
  presencePenalty,
  frequencyPenalty,
  seed,
  stop,
};

const flags = section("how a text is continued", {
  maxTokens: maxTokens(1, 1e9).default(200),
  ...answerFlags,
  ignoreEnd: answerSchema.shape.ignoreEnd,
});

export function addGenerate(program: Command): void {
  const command = program
    .command("generate")
    .description("continue a text with a trained model")
    .argument("<folder>", "a run, a checkpoint, or a Hugging Face folder")
    .argument(
      "<prompt>",
      "beginning of the text; empty for a new document; - reads standard input",
    );
  addPlaceOptions(addOptions(command, flags.shape, "set")).action(run);
}

async function run(
  folder: string,
  given: string,
  options: PlaceOptions,
  command: Command,
): Promise<void> {
  const device = parseDevice(options.device);
  const [{ loadModel }, { Tokenizer }, { endTokens }, { Engine }, { generateBeyondContext }] =
    await Promise.all([
      import("../checkpoint/model.js"),
      import("../data/tokenizer.js"),
      import("../generate/end-tokens.js"),
      import("../generate/engine.js"),
      import("../generate/beyond-context.js"),
    ]);
  const place = await modelFolder(folder, options);
  const prompt = given === "-" ? await readInput() : given;
  const settings = flags.parse(givenOptions(command, flags.shape));
  const tokenizer = await Tokenizer.load(place);
  const ends = await endTokens(place);
  const model = await loadModel(place, { device, dtype: dtypeOf(options) });
  // The cache has room for this text alone. The prompt may get two tokens in front of it.
  const length = (await tokenizer.encode(prompt)).length + 2 + settings.maxTokens;
  const maxLength = Math.max(2, Math.min(length, model.config.contextLength));
  const engine = new Engine(model, tokenizer, { maxBatch: 1, maxLength, endTokens: ends });
  printResult(prompt);
  try {
    for await (const { text } of generateBeyondContext(engine, prompt, settings)) {
      printResult(text);
      // The reader of the output has stopped, e.g. `| head`.
      if (process.stdout.destroyed) break;
    }
  } catch (error) {
    print("\n");
    throw ofCheckpoint(error, place);
  }
  print("\n");
  engine.dispose();
  await engine.idle();
  model.dispose();
}

/** Text on standard input. A line break at its end, as `echo` writes it, is no part of the prompt. */
async function readInput(): Promise<string> {
  const chunks: Buffer[] = [];
  for await (const chunk of process.stdin) chunks.push(chunk as Buffer);
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(Buffer.concat(chunks));
    return text.replace(/\r?\n$/, "");
  } catch (cause) {
    throw new DataError("standard input: expected UTF-8 text", { cause });
  }
}
