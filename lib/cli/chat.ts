import type { Command } from "commander";
import { parseDevice } from "../core/device.js";
import { UsageError } from "../core/errors.js";
import { section } from "../core/option-kinds.js";
import { engineSchema } from "../generate/engine-schema.js";
import { maxTokens } from "../generate/schema.js";
import { type ChatInput, ChatReader } from "./chat-input.js";
import { type Answered, ChatSession, isUsersError } from "./chat-session.js";
import { answerFlags } from "./generate.js";
import {
  addPlaceOptions,
  dtypeOf,
  modelFolder,
  ofCheckpoint,
  type PlaceOptions,
} from "./model-folder.js";
import { addOptions, givenOptions } from "./options.js";
import { print, printError, printResult, printStyled, styled } from "./terminal.js";

const flags = section("how a chat is answered", {
  maxTokens: maxTokens(1, 1e9).optional(),
  ...answerFlags,
});
const engineFlags = section("how the engine runs", {
  maxLength: engineSchema.shape.maxLength,
});

interface ChatOptions extends PlaceOptions {
  system?: string;
  chatTemplate?: string;
}

export function addChat(program: Command): void {
  const command = program
    .command("chat")
    .description("chat with a model that has a chat template")
    .argument("<folder>", "a run, a checkpoint, or a Hugging Face folder")
    .option("--system <text>", "the system's message")
    .option("--chat-template <file>", "a chat template in Jinja, instead of the model's own");
  addOptions(command, flags.shape, "set");
  addOptions(command, engineFlags.shape, "told");
  addPlaceOptions(command).action(run);
}

const help = `Write a message and press Enter. A line that ends with \\ goes on in the next one;
lines between """ and """ are one message. Ctrl-C stops an answer.

  /system TEXT  set the system's message; without a text, remove it
  /reset        begin a new chat
  /save FILE    write the chat into a new file, as JSON
  /help         this help
  /quit         leave, as Ctrl-D and Ctrl-C twice do
`;

async function run(folder: string, options: ChatOptions, command: Command): Promise<void> {
  const device = parseDevice(options.device);
  const place = await modelFolder(folder, options);
  const { Engine } = await import("../generate/engine.js");
  const engine = await Engine.open(place, {
    device,
    dtype: dtypeOf(options),
    maxBatch: 1,
    ...givenOptions(command, engineFlags.shape),
    ...(options.chatTemplate !== undefined && { chatTemplate: options.chatTemplate }),
  });
  try {
    // A model without a template is refused before the first message.
    await engine.encodeChat([{ role: "user", content: "a" }]);
    const settings = flags.parse(givenOptions(command, flags.shape));
    const session = new ChatSession(engine, options.system ?? null, settings);
    await converse(session, place, engine.maxLength);
  } finally {
    engine.dispose();
    await engine.idle();
  }
}

async function converse(session: ChatSession, place: string, context: number): Promise<void> {
  const reader = new ChatReader({
    input: process.stdin,
    output: process.stdout,
    prompt: styled("> ", "prompt"),
    morePrompt: styled("… ", "prompt"),
  });
  const { interactive } = reader;
  if (interactive) {
    printStyled(place, "strong");
    printStyled(`  ${context} tokens of context · /help tells more\n\n`, "faint");
  }
  let interrupted = false;
  try {
    for (;;) {
      const input = await reader.next();
      if (input.kind === "end" || (input.kind === "interrupt" && interrupted)) break;
      if (input.kind === "command" && input.name === "quit") break;
      interrupted = input.kind === "interrupt";
      if (input.kind === "interrupt") printStyled("\nCtrl-C again, or /quit, leaves.\n", "faint");
      else if (input.kind === "message") await answer(session, reader, input.text, place);
      else await obey(session, input, interactive);
      // The reader of the output has stopped, e.g. `| head`.
      if (process.stdout.destroyed) break;
    }
    if (interactive) print("\n");
  } finally {
    reader.close();
  }
}

async function answer(
  session: ChatSession,
  reader: ChatReader,
  text: string,
  place: string,
): Promise<void> {
  const abort = new AbortController();
  let last = "\n";
  const show = (piece: string): void => {
    if (piece !== "") last = piece;
    printResult(piece);
  };
  await reader.during(
    () => abort.abort(),
    async () => {
      try {
        const answered = await session.answer(text, abort.signal, show);
        print(last.endsWith("\n") && last !== "\n" ? "" : "\n");
        if (reader.interactive) printStyled(`${summary(answered)}\n\n`, "faint");
        else if (answered.leftOut > 0) printError(`${leftOutText(answered.leftOut)}\n`);
      } catch (error) {
        if (!isUsersError(error)) throw ofCheckpoint(error, place);
        printError(`llamaforge: ${error.message}\n`);
      }
    },
  );
}

function summary({ tokens, seconds, reason, leftOut }: Answered): string {
  const ended = { stop: "", length: " · cut off", stopped: " · stopped" }[reason];
  const dropped = leftOut > 0 ? ` · ${leftOutText(leftOut)}` : "";
  const rate = seconds > 0 ? ` · ${(tokens / seconds).toFixed(1)} tokens/s` : "";
  return `${tokens} tokens${rate}${ended}${dropped}`;
}

function leftOutText(count: number): string {
  return `the oldest ${count} messages have no room and were left out`;
}

/** Runs a command. A wrong one is explained, and the chat goes on. */
async function obey(
  session: ChatSession,
  { name, argument }: Extract<ChatInput, { kind: "command" }>,
  interactive: boolean,
): Promise<void> {
  const say = (text: string): void => {
    if (interactive) printStyled(`${text}\n`, "faint");
  };
  try {
    if (name === "reset") {
      session.reset();
      say("A new chat.");
    } else if (name === "system") {
      session.setSystem(argument === "" ? null : argument);
      say(argument === "" ? "No system message." : "The system's message is set.");
    } else if (name === "save") {
      if (argument === "") throw new UsageError("/save: expected the name of a file after it");
      await session.save(argument);
      say(`Saved in ${argument}.`);
    } else if (name === "help") {
      print(help);
    } else {
      throw new UsageError(
        `/${name}: expected /system, /reset, /save, /help or /quit; a message that begins with / goes between """`,
      );
    }
  } catch (error) {
    if (!isUsersError(error)) throw error;
    printError(`llamaforge: ${error.message}\n`);
  }
}
