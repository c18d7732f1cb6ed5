import { createHash } from "node:crypto";
import { ArgumentError, DataError } from "../../core/errors.js";
import { optionName, optionValue } from "../../core/option-names.js";
import { maxPartLength, splitStream, splitText } from "../../data/text-parts.js";
import { anyMark, spanMarks, withSpanMarks } from "../../generate/span-marks.js";
import type { TrainingChat, TrainingTemplate } from "../../generate/training-chat.js";
import { chatExtras, chatFields, chatOf, failureOf, maxChatLength, noMessages } from "./chat.js";
import { type FieldPath, type Filter, parseFieldPath, parseFilter } from "./filter.js";
import type {
  FilePosition,
  Input,
  InputFile,
  RawDocument,
  ReaderOptions,
  Skipped,
} from "./input.js";
import { type FileRecord, jsonlRecords } from "./jsonl.js";
import { parquetRecords } from "./parquet.js";
import { pairOf, preferenceFields, writePair } from "./preference.js";
import { textDocument } from "./text-file.js";

/** Facts about a document that are needed before its first piece. */
export interface DocumentStart {
  /** First 16 bytes of the SHA-256 of its UTF-8 bytes. */
  hash: Uint8Array;
  bytes: number;
  record: number;
}

/** A piece of a document, at most `maxPartLength` UTF-16 units long, cut where `splitText` cuts. */
export interface Piece {
  text: string;
  /** Set on the document's first piece. */
  start: DocumentStart | null;
  /** Set on the document's last piece: the position from which the file can be read on. */
  next: FilePosition | null;
  consumed: number;
}

/** The parsed selection of documents in one input's files. */
export interface Selection {
  filter: Filter | null;
  /** Fields that may hold the text. The first one that a record has is used. */
  textFields: (FieldPath & { name: string })[];
  minBytes: number;
  maxBytes: number;
  /** How records with answers become text; null for documents of text. */
  answers: AnswerWriting | null;
}

/** How records with answers become text. */
export interface AnswerWriting {
  /** Whether a record holds two answers of which one is preferred, and not a chat. */
  pairs: boolean;
  /** Writes messages; null for pairs of plain text. */
  template: TrainingTemplate | null;
}

/** @throws ArgumentError for a filter or a field name that cannot be parsed */
export function selectionOf(input: Input, answers: AnswerWriting | null = null): Selection {
  const usual =
    input.kind === "chat"
      ? chatFields
      : input.kind === "preference"
        ? preferenceFields
        : ["text", "content"];
  const names = input.textField === undefined ? usual : [input.textField];
  return {
    filter: input.filter === undefined ? null : parseFilter(input.filter),
    textFields: names.map((name) => ({ name, ...parseFieldPath(name) })),
    minBytes: input.minBytes ?? 1,
    maxBytes: input.maxBytes ?? Number.POSITIVE_INFINITY,
    answers,
  };
}

/**
 * Yields the documents of a file from a position on, piece by piece. Skipped documents are counted
 * in `skipped`.
 */
export async function* pieces(
  file: InputFile,
  from: FilePosition,
  selection: Selection,
  options: ReaderOptions,
  skipped: Skipped,
): AsyncGenerator<Piece> {
  for await (const document of rawDocuments(file, from, selection, options, skipped)) {
    const { text, record, next, consumed } = document;
    const bytes = typeof text === "string" ? lengthOf(text, selection) : text.bytes;
    const reason =
      bytes === 0
        ? "empty"
        : bytes < selection.minBytes
          ? "short"
          : bytes > selection.maxBytes
            ? "long"
            : selection.filter?.matches(document.fields) === false
              ? "filtered"
              : null;
    if (reason !== null) {
      skipped[reason]++;
      continue;
    }
    if (typeof text === "string") {
      const hash = createHash("sha256").update(text, "utf8").digest().subarray(0, 16);
      const start = { hash, bytes, record };
      // A text with answers is encoded as a whole, so that its marks stay in place.
      if (text.length <= maxPartLength || selection.answers) {
        yield { text, start, next, consumed };
        continue;
      }
      const parts = splitText(text, maxPartLength);
      for (const [place, part] of parts.entries()) {
        const last = place === parts.length - 1;
        yield { text: part, start: place === 0 ? start : null, next: last ? next : null, consumed };
      }
      continue;
    }
    let start: DocumentStart | null = { hash: text.sha256.subarray(0, 16), bytes, record };
    for await (const { part, last } of splitStream(text.chunks(), maxPartLength)) {
      yield { text: part, start, next: last ? next : null, consumed };
      start = null;
    }
  }
}

/** UTF-8 bytes of a text. The marks of answers are no part of it. */
function lengthOf(text: string, { answers }: Selection): number {
  const bytes = Buffer.byteLength(text);
  if (!answers) return bytes;
  const marks = text.split(anyMark).length - 1;
  return bytes - marks * Buffer.byteLength(spanMarks.open);
}

async function* rawDocuments(
  file: InputFile,
  from: FilePosition,
  selection: Selection,
  options: ReaderOptions,
  skipped: Skipped,
): AsyncGenerator<RawDocument> {
  if (file.format === "text") {
    yield* textDocument(file, from, options);
    return;
  }
  const onBad = (): void => {
    skipped.bad++;
  };
  const onNonFinite = (): void => {
    skipped.nonFinite++;
  };
  const records = recordsOf(file, from, selection, options, { onBad, onNonFinite });
  if (selection.answers) {
    yield* answerDocuments(file, records, selection, options, onBad);
    return;
  }
  for await (const record of records) {
    const field = selection.textFields.find(({ read }) => read(record.fields) !== null);
    const text = field?.read(record.fields);
    if (typeof text === "string") yield { ...record, text };
    // A text field that is present but null makes a document without text.
    else if (!field && selection.textFields.some(({ isNull }) => isNull(record.fields))) {
      skipped.empty++;
    } else if (options.badRecords === "skip") skipped.bad++;
    else throw noText(file, record, field ? [field] : selection.textFields, text);
  }
}

/** The records of a file that holds records, from a position on. */
export function recordsOf(
  file: InputFile,
  from: FilePosition,
  { textFields, filter, answers }: Selection,
  options: ReaderOptions,
  { onBad, onNonFinite }: { onBad: () => void; onNonFinite: () => void },
): AsyncGenerator<FileRecord> {
  if (file.format === "jsonl") return jsonlRecords(file, from, options, onBad, onNonFinite);
  const columns = {
    text: textFields.map(({ keys }) => keys[0] as string),
    others: [...(filter?.fields ?? []), ...(answers ? chatExtras : [])],
  };
  return parquetRecords(file, from, columns, options, onBad);
}

/** The chats or pairs of records, each as one text with marks around the answers. */
async function* answerDocuments(
  { path }: InputFile,
  records: AsyncGenerator<FileRecord>,
  { textFields, answers }: Selection,
  options: ReaderOptions,
  onBad: () => void,
): AsyncGenerator<RawDocument> {
  const { pairs, template } = answers as AnswerWriting;
  const chatText = (fields: unknown, where: string): string => {
    const field = textFields.find(({ read }) => (read(fields) ?? undefined) !== undefined);
    if (field === undefined) {
      const names = textFields.map(({ name }) => name);
      throw noMessages(where, names, fields);
    }
    const chat = chatOf(field.read(fields), fields, where, field.name);
    return writeChat(template as TrainingTemplate, chat, where);
  };
  for await (const record of records) {
    const where = `${path}, record ${record.record}`;
    try {
      const text = pairs
        ? writePair(template, pairOf(record.fields, where), where)
        : chatText(record.fields, where);
      yield { ...record, text };
    } catch (error) {
      if (options.badRecords === "error" || !(error instanceof DataError)) throw error;
      onBad();
    }
  }
}

/** Writes a chat. @throws DataError naming the record if that cannot be done */
function writeChat(chats: TrainingTemplate, chat: TrainingChat, where: string): string {
  let text: string;
  try {
    text = withSpanMarks(chats.render(chat));
  } catch (cause) {
    if (!(cause instanceof ArgumentError)) throw cause;
    return failureOf(where)(cause.message.replace(/^\[chat\] /, ""));
  }
  if (text.length <= maxChatLength) return text;
  return failureOf(where)(
    `a chat of ${text.length} characters; at most ${maxChatLength} are encoded as a whole`,
  );
}

function noText(
  file: InputFile,
  { record, fields }: { record: number; fields: unknown },
  wanted: Selection["textFields"],
  found: unknown,
): DataError {
  const name = wanted.map((field) => field.name).join(" or ");
  const problem =
    found === undefined
      ? `no field ${name}; ${namesBeside(fields, wanted.length === 1 ? (wanted[0]?.keys ?? []) : [])}`
      : `${name} is no text but ${Array.isArray(found) ? "a list" : typeof found}`;
  const kind = kindOf(fields);
  const way = kind
    ? `${optionValue("kind", kind)} reads such records`
    : `name the field as ${optionName("textField")}`;
  return new DataError(
    `[prepare] ${file.path}, record ${record}: ${problem}; ${way}, ` +
      `or pass ${optionValue("badRecords", "skip")} to leave such records out`,
  );
}

/** The kind of records with answers that a record looks like; null for none. */
function kindOf(fields: unknown): "chat" | "preference" | null {
  const has = (name: string) => Object.hasOwn(fields as object, name);
  if (has("chosen") && has("rejected")) return "preference";
  return chatFields.some(has) ? "chat" : null;
}

/**
 * Names of the fields that exist where the missing one was expected, as deep as its path can be
 * followed.
 */
function namesBeside(fields: unknown, keys: readonly string[]): string {
  let owner = fields as Record<string, unknown>;
  let depth = 0;
  for (const key of keys.slice(0, -1)) {
    const inner = Object.hasOwn(owner, key) ? owner[key] : null;
    if (typeof inner !== "object" || inner === null) break;
    owner = inner as Record<string, unknown>;
    depth++;
  }
  const names = Object.keys(owner);
  const list = names.length > 20 ? [...names.slice(0, 20), "…"] : names;
  return `${depth === 0 ? "it" : keys.slice(0, depth).join(".")} has ${list.join(", ") || "nothing"}`;
}
