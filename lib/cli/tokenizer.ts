import { SingleBar } from "cli-progress";
import type { Command } from "commander";
import { boundedList } from "../core/bounded-list.js";
import { visibleLine } from "../core/visible.js";
import { tokenizerInputSchema, trainTokenizerSchema } from "../prepare/tokenizer/schema.js";
import type {
  TrainTokenizerOptions,
  TrainTokenizerProgress,
  TrainTokenizerResult,
} from "../prepare/tokenizer/train-tokenizer.js";
import { addOptions, givenOptions } from "./options.js";
import { print, printError, printResult } from "./terminal.js";

// Per-input options, which the command line sets for all inputs.
const selection = tokenizerInputSchema.omit({ path: true, exclude: true }).shape;
const { out, ...settings } = trainTokenizerSchema.shape;

export function addTokenizer(program: Command): void {
  const tokenizer = program.command("tokenizer").description("makes tokenizers");
  const command = tokenizer
    .command("train")
    .description("learns a byte-pair tokenizer from text: a folder for prepare and for Python")
    .argument("<inputs...>", "files, folders and patterns, as prepare reads them")
    .option("--json", "print the result as JSON");
  addOptions(command, { out, ...settings, ...selection }, "told").action(
    async (paths: string[], { json }: { json?: true }) => {
      const options = givenOptions(command, trainTokenizerSchema.shape);
      const { out } = options;
      if (out === undefined) {
        return command.error("error: required option '--out <folder>' not specified");
      }
      const own = givenOptions(command, selection);
      const inputs = paths.map((path) => ({ path, ...own }));
      await train({ ...options, out, inputs }, json ?? false);
    },
  );
}

async function train(options: TrainTokenizerOptions, json: boolean): Promise<void> {
  const { trainTokenizer } = await import("../prepare/tokenizer/train-tokenizer.js");
  const bar = process.stdout.isTTY && !json ? new Bar(options) : null;
  const started = performance.now();
  let result: TrainTokenizerResult;
  try {
    result = await trainTokenizer({ ...options, onProgress: (progress) => bar?.update(progress) });
  } finally {
    bar?.stop();
  }
  const { tokenizer, folder, documents, textBytes, words, merges, warnings } = result;
  const { vocabSize } = tokenizer;
  if (json) {
    const facts = { folder, vocabSize, merges, documents, textBytes, words, warnings };
    printResult(`${JSON.stringify(facts, null, 2)}\n`);
    return;
  }
  printError(boundedList(warnings.map((warning) => `warning: ${warning}`)));
  if (warnings.length > 0) printError("\n");
  const count = (n: number) => n.toLocaleString("en-US");
  const seconds = (performance.now() - started) / 1000;
  print(
    `${folder}  ${count(vocabSize)} tokens, ${count(merges)} merges, from ${(textBytes / 1e6).toFixed(1)} MB in ` +
      `${count(documents)} ${documents === 1 ? "document" : "documents"}, ${seconds.toFixed(1)} s\n`,
  );
}

/** A progress bar: first of the text that is read, then of the tokens that are made. */
class Bar {
  readonly #bar: SingleBar;
  readonly #vocabSize: number;

  constructor({ out, vocabSize }: TrainTokenizerOptions) {
    // The bar would take a name in braces for one of its fields.
    const shown = visibleLine(out).replaceAll(/[{}]/g, "_");
    const format = `${shown} {bar} {percentage}%  {documents} documents  {tokens}`;
    this.#vocabSize = vocabSize ?? 32000;
    this.#bar = new SingleBar({ format, barsize: 20, hideCursor: true, gracefulExit: false });
    this.#bar.start(1, 0, { documents: "0", tokens: "" });
  }

  update({ documents, bytes, totalBytes, tokens }: TrainTokenizerProgress): void {
    this.#bar.setTotal(tokens === 0 ? totalBytes : this.#vocabSize);
    this.#bar.update(tokens === 0 ? bytes : tokens, {
      documents: documents.toLocaleString("en-US"),
      tokens: tokens === 0 ? "" : `${tokens.toLocaleString("en-US")} tokens`,
    });
  }

  stop(): void {
    this.#bar.stop();
  }
}
