import { basename, resolve } from "node:path";
import { type Command, Option } from "commander";
import { parseDevice } from "../core/device.js";
import { UsageError } from "../core/errors.js";
import { codeOfSignal } from "../core/exit.js";
import { readSmallFile, sizeLimits, utf8Of } from "../files/small-file.js";
import { engineSchema } from "../generate/engine-schema.js";
import { isLoopback } from "../serve/access.js";
import { serverSchema } from "../serve/schema.js";
import type { RunningServer } from "../serve/server.js";
import { addDownloadOption, type DownloadFlag } from "./hub-model.js";
import { modelFolder } from "./model-folder.js";
import { addOptions, givenOptions } from "./options.js";
import { print, printError } from "./terminal.js";

// The name has a default of its own here, and the prefix cache is on unless it is turned off.
const { modelName: __, ...serverFlags } = serverSchema.shape;
const { prefixCache: _, ...engineFlags } = engineSchema.shape;

interface OtherOptions extends DownloadFlag {
  device: string;
  precision?: "fp32" | "bf16";
  modelName?: string;
  apiKeyFile?: string;
  chatTemplate?: string;
  prefixCache: boolean;
}

export function addServe(program: Command): void {
  const command = program
    .command("serve")
    .description("answer HTTP requests as OpenAI's interface does, with a chat page at /")
    .argument("<folder>", "a run, a checkpoint, or a Hugging Face folder");
  addOptions(command, serverFlags, "set")
    .option("--model-name <name>", "name of the model (default: the folder's)")
    .option("--api-key-file <file>", "file with keys that requests must send, one a line")
    .option("--chat-template <file>", "Jinja template of chats (default: the model's)")
    .option("--device <device>", "cpu, cuda or cuda:N", "cpu")
    .addOption(
      new Option(
        "--precision <p>",
        "of weights and activations (default: fp32 on a CPU, bf16 on a GPU)",
      ).choices(["fp32", "bf16"]),
    );
  addDownloadOption(command);
  addOptions(command, engineFlags, "told")
    .option("--no-prefix-cache", "compute every prompt from its beginning")
    .action(run);
}

async function run(folder: string, options: OtherOptions, command: Command): Promise<void> {
  const device = parseDevice(options.device);
  const place = await modelFolder(folder, options);
  const given = givenOptions(command, serverFlags);
  const apiKeys = [...(given.apiKeys ?? []), ...(await storedKeys(options.apiKeyFile))];
  const { precision, chatTemplate, prefixCache } = options;
  const [{ Engine }, { serve }] = await Promise.all([
    import("../generate/engine.js"),
    import("../serve/server.js"),
  ]);
  const engine = await Engine.open(place, {
    ...givenOptions(command, engineFlags),
    device,
    prefixCache,
    ...(precision && { dtype: precision === "bf16" ? "bf16" : "f32" }),
    ...(chatTemplate !== undefined && { chatTemplate }),
  });
  try {
    const server = await serve(engine, {
      ...given,
      apiKeys,
      modelName: options.modelName ?? basename(resolve(folder)),
      onError: (error) =>
        printError(`${error instanceof Error ? (error.stack ?? error.message) : String(error)}\n`),
    });
    if (apiKeys.length === 0 && !isLoopback(given.host ?? "127.0.0.1")) {
      printError("warning: this address may be reached from outside, and no API key is set\n");
    }
    const { pages, pageSize } = engine.state;
    print(
      `llamaforge serves ${folder} at ${server.url}\n` +
        `  cache for ${(pages * pageSize).toLocaleString("en-US")} tokens, ` +
        `${engine.maxLength.toLocaleString("en-US")} for one text; ` +
        `${engine.chatTemplate ? "chats and texts" : "texts only: the model has no chat template"}\n`,
    );
    await closedBySignal(server);
  } finally {
    engine.dispose();
    await engine.idle();
  }
}

/** Closes the server at the first signal. A second one ends the process at once. */
async function closedBySignal(server: RunningServer): Promise<void> {
  await new Promise<void>((done, failed) => {
    let closing = false;
    for (const signal of ["SIGINT", "SIGTERM"] as const) {
      process.on(signal, () => {
        if (closing) process.exit(codeOfSignal(signal));
        closing = true;
        printError(`${signal}: answers may end; a second signal ends them at once\n`);
        server.close().then(done, failed);
      });
    }
  });
}

/** Keys that no list of processes shows: of a file, and of LLAMAFORGE_API_KEYS. */
async function storedKeys(file: string | undefined): Promise<string[]> {
  const words = (text: string) => text.split(/[\s,]+/).filter((word) => word !== "");
  const fromEnvironment = words(process.env.LLAMAFORGE_API_KEYS ?? "");
  if (file === undefined) return fromEnvironment;
  let text: string;
  try {
    text = utf8Of(await readSmallFile(file, { limit: sizeLimits.recipe, mayBeEmpty: true }));
  } catch (cause) {
    throw new UsageError(`--api-key-file ${file}: ${(cause as Error).message}`, { cause });
  }
  const lines = text.split("\n").map((line) => line.trim());
  const keys = lines.filter((line) => line !== "" && !line.startsWith("#"));
  if (keys.length === 0) throw new UsageError(`${file}: expected API keys, one a line, got none`);
  return [...fromEnvironment, ...keys];
}
