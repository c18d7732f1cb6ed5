/** Records of preferences: a prompt, and two answers to it of which one is preferred. */
import { ArgumentError, DataError } from "../../core/errors.js";
import { spanMarks, withSpanMarks } from "../../generate/span-marks.js";
import type { TrainingChat, TrainingTemplate } from "../../generate/training-chat.js";
import { chatOf, type FailRecord, failureOf, maxChatLength, messagesOf } from "./chat.js";

/** Fields of a record of preferences. The prompt may be part of the answers instead. */
export const preferenceFields = ["prompt", "chosen", "rejected"] as const;

/** Whether records hold plain texts, or messages that a template writes. */
export type PairForm = "text" | "messages";

/** The two answers of a record. */
export type Pair =
  | { form: "text"; prompt: string; chosen: string; rejected: string }
  | {
      form: "messages";
      prompt: TrainingChat["messages"];
      chosen: TrainingChat["messages"];
      rejected: TrainingChat["messages"];
      tools?: readonly unknown[];
    };

type Fields = Readonly<Record<string, unknown>>;

/**
 * The pair of a record, in the forms that TRL reads: `prompt`, `chosen` and `rejected` as texts, or
 * as lists of messages. Without a prompt of the answers' form, what both answers have in common at
 * their beginning is the prompt.
 * @param where names the record in the error
 * @throws DataError naming the field that is wrong
 */
export function pairOf(record: unknown, where: string): Pair {
  const fail = failureOf(where);
  const pair = readPair(record, where, fail);
  if (JSON.stringify(pair.chosen) === JSON.stringify(pair.rejected)) {
    return fail("chosen equals rejected, so neither is preferred");
  }
  return pair;
}

function readPair(record: unknown, where: string, fail: FailRecord): Pair {
  const { prompt = null, chosen = null, rejected = null } = record as Fields;
  for (const [name, value] of Object.entries({ chosen, rejected })) {
    if (value === null) {
      const present = Object.keys(record as object)
        .slice(0, 20)
        .join(", ");
      return fail(`no field ${name}; it has ${present || "nothing"}`);
    }
  }
  const lists = [chosen, rejected].filter(Array.isArray).length;
  if (lists === 2) return pairOfMessages(record, where, fail);
  if (typeof chosen !== "string" || typeof rejected !== "string") {
    return fail("chosen and rejected: expected two texts, or two lists of messages");
  }
  if (prompt === null) return splitTexts(chosen, rejected, fail);
  if (typeof prompt !== "string") return fail("prompt: expected a text, as the answers are");
  return { form: "text", prompt, chosen, rejected };
}

function pairOfMessages(record: unknown, where: string, fail: FailRecord): Pair {
  const { prompt = null, chosen, rejected } = record as Fields;
  const answers = [messagesOf(chosen, "chosen", fail), messagesOf(rejected, "rejected", fail)];
  const [first, second] = answers as [Fields[], Fields[]];
  const pair = (messages: unknown, from: number): Pair => {
    for (const [name, answer] of Object.entries({ chosen: first, rejected: second })) {
      if (answer.slice(from).some(({ role }) => role === "assistant")) continue;
      const roles = answer.map(({ role }) => role).join(", ");
      return fail(`${name}: expected a message of the assistant after the prompt, got ${roles}`);
    }
    const { messages: opening, tools } = chatOf(messages, record, where, "prompt");
    return {
      form: "messages",
      prompt: opening,
      chosen: first.slice(from),
      rejected: second.slice(from),
      ...(tools && { tools }),
    };
  };
  if (Array.isArray(prompt)) return pair(prompt, 0);
  let shared = 0;
  // Each answer keeps at least one message.
  const most = Math.min(first.length, second.length) - 1;
  while (shared < most && JSON.stringify(first[shared]) === JSON.stringify(second[shared])) {
    shared++;
  }
  if (shared > 0) return pair(first.slice(0, shared), shared);
  if (typeof prompt === "string") return pair([{ role: "user", content: prompt }], 0);
  return fail("no prompt: chosen and rejected begin with different messages");
}

/** Splits two texts where they begin to differ. A space before the difference is the answers'. */
function splitTexts(chosen: string, rejected: string, fail: FailRecord): Pair {
  if (chosen === rejected) {
    return fail("no prompt, and chosen equals rejected, so where the answers begin is unknown");
  }
  let shared = 0;
  while (shared < chosen.length && chosen[shared] === rejected[shared]) shared++;
  // Halves of a character beyond U+FFFF stay together.
  if (/[\uD800-\uDBFF]/.test(chosen[shared - 1] ?? "")) shared--;
  if (chosen[shared - 1] === " ") shared--;
  if (shared === 0) return fail("no prompt: chosen and rejected have no beginning in common");
  return {
    form: "text",
    prompt: chosen.slice(0, shared),
    chosen: chosen.slice(shared),
    rejected: rejected.slice(shared),
  };
}

/**
 * Writes a pair: the prompt with the preferred answer and the prompt with the other one, each with
 * marks around the answer.
 * @param template writes messages; null for pairs of plain text
 * @throws DataError naming the record if its form is another, or if the template refuses it
 */
export function writePair(template: TrainingTemplate | null, pair: Pair, where: string): string {
  const fail = failureOf(where);
  if ((pair.form === "messages") !== (template !== null)) {
    const [first, other] = template ? ["messages", "texts"] : ["texts", "messages"];
    return fail(`the first record holds ${first}, this one ${other}: prepare each kind by itself`);
  }
  const written = [pair.chosen, pair.rejected].map((answer) => {
    const text =
      pair.form === "text"
        ? { start: pair.prompt, text: `${pair.prompt}${answer as string}` }
        : renderAnswer(
            template as TrainingTemplate,
            pair,
            answer as TrainingChat["messages"],
            fail,
          );
    if (text.text.length > maxChatLength) {
      fail(
        `an answer of ${text.text.length} characters with its prompt; at most ${maxChatLength} are encoded as a whole`,
      );
    }
    if (/[\uFDD0-\uFDD2]/.test(text.text))
      fail("a text holds U+FDD0 to U+FDD2, which are no characters");
    return withSpanMarks({ text: text.text, spans: [[text.start.length, text.text.length]] });
  });
  return written.join(spanMarks.between);
}

/** The chat with an answer as text, and the part of it in front of the answer. */
function renderAnswer(
  template: TrainingTemplate,
  { prompt, tools }: Extract<Pair, { form: "messages" }>,
  answer: TrainingChat["messages"],
  fail: FailRecord,
): { start: string; text: string } {
  try {
    const extras = tools ? { tools } : {};
    const asked = template.prompt(prompt, extras);
    const text = template.text({ messages: [...prompt, ...answer], ...extras });
    // A template may write more after the question than before an answer, such as empty thoughts.
    let shared = 0;
    while (shared < asked.length && asked[shared] === text[shared]) shared++;
    return { start: text.slice(0, shared), text };
  } catch (error) {
    if (!(error instanceof ArgumentError)) throw error;
    return fail(error.message.replace(/^\[chat\] /, ""));
  }
}

/**
 * The form of the first pair of records, which all others have.
 * @returns null if there are none
 * @throws DataError naming the record that is no pair
 */
export async function formOfPairs(
  records: AsyncIterable<{ fields: unknown; where: string }>,
  badRecords: "error" | "skip",
): Promise<PairForm | null> {
  for await (const { fields, where } of records) {
    try {
      return pairOf(fields, where).form;
    } catch (error) {
      if (badRecords === "error" || !(error instanceof DataError)) throw error;
    }
  }
  return null;
}
