import { stat } from "node:fs/promises";
import { basename, join } from "node:path";
import { Environment, parse, tokenize } from "@huggingface/jinja";
import { checkBoolean, checkInstance, checkMade, checkObject, checkPath } from "../core/check.js";
import { checkOptions, checkString } from "../core/check-values.js";
import { ArgumentError, TokenizerError } from "../core/errors.js";
import { Tokenizer } from "../data/tokenizer.js";
import { answered, readSmallFile, sizeLimits, utf8Of } from "../files/small-file.js";
import { ChatInterpreter } from "./chat-interpreter.js";
import { type ChatMessage, checkMessages, refuseTools } from "./chat-messages.js";
import { strftime } from "./strftime.js";

/** How a chat is written as one text. */
export interface RenderOptions {
  /** Whether the beginning of the assistant's next message follows. Default: true. */
  addGenerationPrompt?: boolean;
  /** Further variables of the template, such as `enable_thinking`. Default: none. */
  variables?: Readonly<Record<string, unknown>>;
}

interface Source {
  /** The template's text in Jinja. */
  text: string;
  /** File that it comes from, for messages. */
  file: string;
}

/** A template with the special tokens that it may name, as plain data for other threads. */
export interface ChatSource extends Source {
  tokens: Readonly<Record<string, string>>;
}

/** The error that a template throws with `raise_exception`. */
class Refusal extends Error {}

/**
 * A model's way of writing a chat as one text: the Jinja template in its folder, in
 * `chat_template.jinja` or as `chat_template` in `tokenizer_config.json`. The text is that of
 * transformers' `apply_chat_template`.
 */
export class ChatTemplate {
  /** File that the template comes from. */
  readonly file: string;
  /** The template's text in Jinja. */
  readonly source: string;
  readonly #program: ReturnType<typeof parse>;
  readonly #tokens: Readonly<Record<string, string>>;

  private constructor(source: ChatSource) {
    checkMade("ChatTemplate", "ChatTemplate.load()", typeof source?.text === "string");
    this.file = source.file;
    this.source = source.text;
    this.#tokens = source.tokens;
    try {
      this.#program = parse(tokenize(source.text, { lstrip_blocks: true, trim_blocks: true }));
    } catch (cause) {
      throw new TokenizerError(
        `[ChatTemplate] ${source.file}: the chat template is not valid Jinja: ${(cause as Error).message}`,
        { cause },
      );
    }
  }

  /**
   * The template of a model's folder, or the one in a file.
   * @param tokenizer the model's tokenizer, whose special tokens the template may name
   * @throws TokenizerError if there is none, or if it is damaged
   */
  static async load(path: string, tokenizer: Tokenizer): Promise<ChatTemplate> {
    const found = await ChatTemplate.find(path, tokenizer);
    if (found) return found;
    throw noTemplate(path);
  }

  /** As `load`, but null for a folder without a template. */
  static async find(path: string, tokenizer: Tokenizer): Promise<ChatTemplate | null> {
    checkPath("ChatTemplate.load", "path", path);
    checkInstance("ChatTemplate.load", "tokenizer", tokenizer, Tokenizer, "a Tokenizer");
    const source = await findSource(path);
    return source && new ChatTemplate({ ...source, tokens: namedTokens(tokenizer) });
  }

  /** A template from its text in Jinja. @throws TokenizerError if it is not valid */
  static of(text: string, tokenizer: Tokenizer): ChatTemplate {
    checkString("ChatTemplate.of", "text", text);
    checkInstance("ChatTemplate.of", "tokenizer", tokenizer, Tokenizer, "a Tokenizer");
    const tokens = namedTokens(tokenizer);
    return new ChatTemplate({ text, file: "the given text", tokens });
  }

  /** A template from `parts`, as another thread has them. @throws TokenizerError if it is not valid */
  static from(parts: ChatSource): ChatTemplate {
    return new ChatTemplate(parts);
  }

  /** The template as plain data, from which `from` makes it again. */
  get parts(): ChatSource {
    return { text: this.source, file: this.file, tokens: this.#tokens };
  }

  /**
   * Writes a chat as one text.
   * @throws ArgumentError naming the message that is wrong, or with the template's own words if it
   *   refuses the messages
   * @throws TokenizerError if the template fails
   */
  render(messages: readonly ChatMessage[], options: RenderOptions = {}): string {
    const op = "chat";
    const checked = checkMessages(op, messages);
    if (typeof options === "object" && options !== null && "tools" in options) {
      refuseTools(op, options.tools);
    }
    checkOptions(op, options, ["addGenerationPrompt", "variables", "tools"]);
    const { addGenerationPrompt = true, variables = {} } = options;
    checkBoolean(op, "addGenerationPrompt", addGenerationPrompt);
    checkObject(op, "variables", variables, "an object of variables");
    return this.run({
      ...variables,
      messages: checked,
      add_generation_prompt: addGenerationPrompt,
    });
  }

  /**
   * Runs the template with variables that the caller has checked.
   * @throws ArgumentError with the template's own words if it refuses the messages
   * @throws TokenizerError if the template fails
   */
  run(variables: Readonly<Record<string, unknown>>): string {
    const environment = new Environment();
    const globals = {
      ...constants,
      tools: null,
      documents: null,
      ...this.#tokens,
      ...variables,
    };
    try {
      for (const [name, value] of Object.entries(globals)) environment.set(name, value);
      return String(new ChatInterpreter(environment).run(this.#program).value);
    } catch (cause) {
      if (cause instanceof Refusal) {
        throw new ArgumentError(
          `[chat] the model's chat template refuses these messages: ${cause.message}`,
          { cause },
        );
      }
      throw new TokenizerError(
        `[chat] ${this.file}: the chat template fails: ${(cause as Error).message}`,
        { cause },
      );
    }
  }
}

/** Names that templates expect to be there. */
const constants = {
  true: true,
  false: false,
  none: null,
  True: true,
  False: false,
  None: null,
  raise_exception: (message: unknown) => {
    throw new Refusal(String(message));
  },
  range: (first: number, end?: number, step = 1) => {
    const [from, to] = end === undefined ? [0, first] : [first, end];
    const count = Math.max(0, Math.ceil((to - from) / step));
    return Array.from({ length: count }, (_, index) => from + index * step);
  },
  strftime_now: (format: string) => strftime(new Date(), format),
};

export function noTemplate(path: string): TokenizerError {
  return new TokenizerError(
    `[chat] ${path}: this model has no chat template: expected chat_template.jinja, or chat_template in ` +
      "tokenizer_config.json. Give a template with --chat-template FILE, or as the option chatTemplate",
  );
}

async function findSource(path: string): Promise<Source | null> {
  const isFolder = await answered(path, undefined, () => stat(path)).then(
    (found) => found.isDirectory(),
    (cause: Error) => {
      throw new TokenizerError(`[ChatTemplate] cannot read ${path}: ${cause.message}`, { cause });
    },
  );
  if (!isFolder) {
    const file = basename(path);
    const text = await readText(path);
    return { file: path, text: file.endsWith(".json") ? (inConfig(path, text) ?? "") : text };
  }
  const own = join(path, "chat_template.jinja");
  const text = await readText(own, true);
  if (text !== null) return { file: own, text };
  const config = join(path, "tokenizer_config.json");
  const configText = await readText(config, true);
  const inside = configText === null ? null : inConfig(config, configText);
  return inside === null ? null : { file: config, text: inside };
}

async function readText(path: string): Promise<string>;
async function readText(path: string, mayLack: true): Promise<string | null>;
async function readText(path: string, mayLack = false): Promise<string | null> {
  try {
    return utf8Of(await readSmallFile(path, { limit: sizeLimits.tokenizerConfig }));
  } catch (cause) {
    if (mayLack && (cause as NodeJS.ErrnoException).code === "ENOENT") return null;
    throw new TokenizerError(`[ChatTemplate] cannot read ${path}: ${(cause as Error).message}`, {
      cause,
    });
  }
}

/** The template in a tokenizer_config.json: a text, or a list of named ones. */
function inConfig(file: string, text: string): string | null {
  const fail = (problem: string): never => {
    throw new TokenizerError(`[ChatTemplate] ${file}: ${problem}`);
  };
  let config: unknown;
  try {
    config = JSON.parse(text);
  } catch (cause) {
    return fail(`not JSON: ${(cause as Error).message}`);
  }
  const given = (config as { chat_template?: unknown } | null)?.chat_template ?? null;
  if (given === null || typeof given === "string") return given;
  const expected = "expected chat_template to be a text, or a list of { name, template }";
  if (!Array.isArray(given)) return fail(expected);
  const named = given as readonly { name?: unknown; template?: unknown }[];
  if (!named.every((one) => typeof one?.name === "string" && typeof one.template === "string")) {
    return fail(expected);
  }
  const standard =
    named.find(({ name }) => name === "default") ??
    fail(
      `expected a chat template named "default", got ${named.map(({ name }) => name).join(", ")}`,
    );
  return standard.template as string;
}

const tokenFields = ["bos", "eos", "unk", "pad", "sep", "cls", "mask"].map(
  (name) => `${name}_token`,
);

/** The special tokens that a template may name: `bos_token` and so on. */
function namedTokens(tokenizer: Tokenizer): Record<string, string> {
  const contents = Object.entries(tokenizer.contents()).filter(
    ([name]) => name !== "tokenizer.json",
  );
  const configs = contents.map(([, bytes]) => JSON.parse(Buffer.from(bytes).toString("utf8")));
  const tokens: Record<string, string> = {};
  for (const field of tokenFields) {
    const given = configs.map((config) => config[field]).find((value) => value !== undefined);
    const text = typeof given === "object" && given !== null ? given.content : given;
    if (typeof text === "string") tokens[field] = text;
    // A file that says `null` has no such token, whatever the vocabulary holds.
    if (given !== undefined) continue;
    const id = { bos_token: tokenizer.bosId, eos_token: tokenizer.eosId }[field];
    if (id !== undefined && id !== null) tokens[field] = tokenizer.token(id);
  }
  return tokens;
}
