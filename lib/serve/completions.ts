import { randomUUID } from "node:crypto";
import type { z } from "zod";
import { flag, integer, section } from "../core/option-kinds.js";
import type { AnswerPart } from "../generate/answer.js";
import type { ScoredToken } from "../generate/score.js";
import { ApiError } from "./api-error.js";
import {
  checkAnswerIds,
  checkIds,
  checkLength,
  checkModel,
  type ServerContext,
} from "./context.js";
import { EventFrame } from "./event-frame.js";
import type { Reply } from "./reply.js";
import { answerOptions, checkFields, isId, sharedFields, whole } from "./request-fields.js";
import { runAnswers } from "./run-answers.js";
import { type CompletionLogprobs, TextOffsets } from "./token-texts.js";

type Prompt = string | number[];

const isText = (value: unknown): boolean => typeof value === "string";
const isIds = (value: unknown): boolean =>
  Array.isArray(value) && value.length > 0 && value.every(isId);

const completionSchema = section("a completion", {
  ...sharedFields,
  prompt: whole<Prompt | Prompt[]>(
    (value) =>
      isText(value) ||
      isIds(value) ||
      (Array.isArray(value) && value.length > 0 && (value.every(isText) || value.every(isIds))),
    "a text, a list of texts, a list of token ids, or a list of such lists",
    "beginnings of the texts",
  ).nullish(),
  echo: flag("begin the text with the prompt").nullish(),
  logprobs: integer(0, 20, "likeliest tokens beside each token").nullish(),
});

type CompletionFields = z.output<typeof completionSchema>;

/** The prompts of a request as lists. */
function promptsOf({ prompt }: CompletionFields): Prompt[] {
  // Without a prompt, the answer is a new document.
  if (prompt === undefined || prompt === null) return [""];
  if (typeof prompt === "string") return [prompt];
  return typeof prompt[0] === "number" ? [prompt as number[]] : (prompt as Prompt[]);
}

/** One answer of a completion while it is written. */
class CompletionChoice {
  readonly #context: ServerContext;
  readonly #index: number;
  readonly #offsets: TextOffsets;
  /** The prompt as the answer begins with it; null after it was given out. */
  #echo: { text: string; tokens: readonly ScoredToken[] } | null;
  readonly #logprobs: boolean;

  constructor(
    context: ServerContext,
    index: number,
    prompt: readonly number[],
    echo: readonly ScoredToken[] | null,
    logprobs: boolean,
  ) {
    const { tokenizer } = context.engine;
    this.#context = context;
    this.#index = index;
    this.#logprobs = logprobs;
    this.#offsets = new TextOffsets(tokenizer, echo ? [] : prompt);
    this.#echo = echo && { text: tokenizer.decodeStream().pushAll(prompt), tokens: echo };
  }

  /** A part as an event of a stream shows it; whole answers are made of the same. */
  add({ text, tokens, finishReason }: AnswerPart) {
    const echo = this.#echo;
    this.#echo = null;
    const all: readonly ScoredToken[] = echo ? [...echo.tokens, ...tokens] : tokens;
    return {
      text: (echo?.text ?? "") + text,
      index: this.#index,
      logprobs: this.#logprobs ? this.#context.texts.ofCompletion(all, this.#offsets) : null,
      finish_reason: finishReason,
    };
  }
}

/** `POST /v1/completions` */
export async function completions(
  context: ServerContext,
  body: Record<string, unknown>,
  reply: Reply,
): Promise<void> {
  const startMs = performance.now();
  const fields = checkFields(completionSchema, body);
  checkModel(context, fields.model);
  checkAnswerIds(context, fields);
  const options = {
    ...answerOptions(fields),
    maxTokens: fields.max_tokens ?? 16,
    topLogprobs: fields.logprobs ?? 0,
  };
  const given = promptsOf(fields);
  if (given.length * options.n > context.maxAnswers) {
    throw new ApiError(
      400,
      `expected at most ${context.maxAnswers} answers to one request, got ${given.length} prompts with n of ${options.n}`,
      { param: "n", code: "invalid_value" },
    );
  }
  for (const prompt of given) if (typeof prompt !== "string") checkIds(context, prompt, "prompt");
  const prompts = await Promise.all(given.map((prompt) => context.engine.encode(prompt)));
  for (const ids of prompts) checkLength(context, ids, "prompt");
  const choices = await choicesOf(context, fields, prompts, options, reply.signal);
  const head = {
    id: `cmpl-${randomUUID().replaceAll("-", "")}`,
    object: "text_completion",
    created: Math.floor(Date.now() / 1000),
    model: context.modelName,
  };
  const run = (onPart: (part: AnswerPart) => string) =>
    runAnswers(context, { route: "/v1/completions", prompts, options, reply, startMs, onPart });
  const choiceOf = ({ index }: AnswerPart) => choices[index] as CompletionChoice;
  if (fields.stream) {
    const withUsage = fields.stream_options?.include_usage ?? false;
    const rest = withUsage ? { usage: null } : {};
    const frame = new EventFrame(head, rest);
    const usage = await run((part) => {
      const { text, index, logprobs, finish_reason: reason } = choiceOf(part).add(part);
      return frame.event(index, `"text":${JSON.stringify(text)}`, logprobs, reason);
    });
    if (withUsage) await reply.event({ ...head, choices: [], usage });
    await reply.endEvents();
    return;
  }
  const parts = choices.map((): ReturnType<CompletionChoice["add"]>[] => []);
  const usage = await run((part) => {
    parts[part.index]?.push(choiceOf(part).add(part));
    return "";
  });
  await reply.json(200, { ...head, choices: parts.map(joined), usage });
}

/** The answers in their order, with the tokens of the prompts that they repeat. */
async function choicesOf(
  context: ServerContext,
  { echo, logprobs }: CompletionFields,
  prompts: readonly (readonly number[])[],
  { n, topLogprobs }: { n: number; topLogprobs: number },
  signal: AbortSignal,
): Promise<CompletionChoice[]> {
  const wantsLogprobs = logprobs !== undefined && logprobs !== null;
  const choices: CompletionChoice[] = [];
  for (const ids of prompts) {
    let repeated: readonly ScoredToken[] | null = null;
    if (echo && wantsLogprobs) {
      repeated = await context.engine.score(ids, { top: topLogprobs, signal });
    } else if (echo) {
      repeated = [];
    }
    for (let i = 0; i < n; i++) {
      choices.push(new CompletionChoice(context, choices.length, ids, repeated, wantsLogprobs));
    }
  }
  return choices;
}

function joined(parts: readonly ReturnType<CompletionChoice["add"]>[]) {
  const last = parts.at(-1) as ReturnType<CompletionChoice["add"]>;
  const lists = parts.flatMap(({ logprobs }) => logprobs ?? []);
  const list = <K extends keyof CompletionLogprobs>(name: K) =>
    lists.flatMap((one) => one[name] as CompletionLogprobs[K][number][]);
  return {
    ...last,
    text: parts.map(({ text }) => text).join(""),
    logprobs: last.logprobs && {
      tokens: list("tokens"),
      token_logprobs: list("token_logprobs"),
      top_logprobs: list("top_logprobs"),
      text_offset: list("text_offset"),
    },
  };
}
