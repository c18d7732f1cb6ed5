/** The summary of a preparation: for its user, and in dataset.json. */
import { createHash } from "node:crypto";
import { resolve } from "node:path";
import { optionName, optionValue } from "../../core/option-names.js";
import {
  chatDatasetVersion,
  type DatasetFile,
  datasetFormat,
  datasetVersion,
  pairDatasetVersion,
} from "../../data/dataset-file.js";
import type { Tokenizer } from "../../data/tokenizer.js";
import { countPassedOver } from "../../files/passed-over.js";
import { documentEndOf } from "../document-end.js";
import type { PrepareSettings } from "../options.js";
import type { FoundInput } from "../readers/find.js";
import type { Input, InputFile, Skipped } from "../readers/input.js";
import type { AnswerFacts } from "./chat-facts.js";
import type { Pass } from "./pass.js";

/**
 * Reasons for skipping a document, in words. Records with NaN or infinity are only noted, not
 * skipped.
 */
const leftOutWords: Record<Exclude<keyof Skipped, "nonFinite">, () => string> = {
  empty: () => "empty",
  filtered: () => "that the filter refuses",
  short: () => `below ${optionName("minBytes")}`,
  long: () => `above ${optionName("maxBytes")}`,
  bad: () => "bad records",
  duplicate: () => "copies",
};

/** Describes the skipped documents of each input, in words. */
export function leftOutOf(inputs: readonly Input[], { progress }: Pass): string[] {
  return progress.sources.flatMap(({ skipped }, index) => {
    const parts = (Object.keys(leftOutWords) as (keyof typeof leftOutWords)[])
      .filter((reason) => skipped[reason] > 0)
      .map((reason) => `${skipped[reason]} ${leftOutWords[reason]()}`);
    return parts.length === 0 ? [] : [`${inputs[index]?.path}: left out ${parts.join(", ")}`];
  });
}

/** Warnings about the documents: things the user should know that are not errors. */
export function warningsOf(
  settings: PrepareSettings,
  tokenizer: Tokenizer,
  answers: AnswerFacts | null,
  pass: Pass,
): string[] {
  const { inputs, validationFraction: fraction, documentStart } = settings;
  const { train, validation } = pass.splits;
  const warnings: string[] = [];
  const chosen = inputs.some((input) => input.to !== undefined);
  if (fraction > 0 && pass.progress.threshold !== fraction) {
    warnings.push(
      `too few documents for a validation share of ${fraction}: ` +
        `${validation.documents} of ${train.documents + validation.documents} held out`,
    );
  } else if (fraction > 0 && !chosen && validation.documents === 0) {
    warnings.push("all text is one document: none is held out for validation");
  }
  warnings.push(...leftOutOf(inputs, pass));
  for (const [index, { skipped }] of pass.progress.sources.entries()) {
    if (!skipped.nonFinite) continue;
    warnings.push(
      `${inputs[index]?.path}: ${skipped.nonFinite} records hold NaN or Infinity, as Python writes them; ` +
        "they were read as null",
    );
  }
  warnings.push(...(answers?.warnings ?? []));
  if (!answers?.template && documentStart === "none" && tokenizer.addsBos) {
    const name = tokenizer.token(tokenizer.bosId as number);
    warnings.push(
      `the tokenizer puts ${name} in front of every text where other programs use it, and documents were written ` +
        `without: ${optionValue("documentStart", "bos")} puts it there`,
    );
  }
  return warnings;
}

/** Warns where several inputs name one file, which is then read several times. */
export function readTwice(files: readonly InputFile[]): string[] {
  const known = new Set<string>();
  const twice: string[] = [];
  for (const { path } of files) {
    const place = resolve(path);
    if (known.has(place)) twice.push(path);
    known.add(place);
  }
  const [first] = twice;
  if (first === undefined) return [];
  return [`${twice.length} files are read again, as several inputs name them, such as ${first}`];
}

/** The content of dataset.json. */
export function datasetOf(
  settings: PrepareSettings,
  facts: {
    found: readonly FoundInput[];
    tokenizer: Tokenizer;
    dtype: DatasetFile["dtype"];
    answers: AnswerFacts | null;
  },
  { progress, splits }: Pass,
): DatasetFile {
  const { found, tokenizer, dtype, answers } = facts;
  const { validationFraction: fraction, deduplicate } = settings;
  const documentStart = answers ? "none" : settings.documentStart;
  const end = documentEndOf(answers ? "none" : settings.documentEnd, tokenizer);
  return {
    format: datasetFormat,
    version: answers ? (answers.pairs ? pairDatasetVersion : chatDatasetVersion) : datasetVersion,
    dtype,
    vocabSize: tokenizer.vocabSize,
    eosId: tokenizer.eosId,
    bosId: tokenizer.bosId,
    documentStart,
    documentEnd: end.kind,
    ...(end.kind === "token" && end.id !== null && { endId: end.id }),
    tokenizer: tokenizerEntry(tokenizer),
    validation: { fraction, threshold: progress.threshold },
    deduplicated: deduplicate,
    ...(answers && answersEntry(answers)),
    splits,
    sources: progress.sources.map((counts, index) => {
      const { kind, passed } = found[index] as FoundInput;
      const { nonFinite, ...skipped } = counts.skipped;
      return {
        path: settings.inputs[index]?.path as string,
        kind,
        ...counts,
        skipped: { ...skipped, ...(nonFinite && { nonFinite }) },
        ...(passed.length > 0 && { passedOver: countPassedOver(passed) }),
      };
    }),
  };
}

/** The entry of dataset.json about chats or pairs. */
function answersEntry(answers: AnswerFacts): Pick<DatasetFile, "chats" | "pairs"> {
  const { pairs, templateSha256, endId } = answers;
  if (pairs) return { pairs: { templateSha256, endId } };
  return { chats: { templateSha256: templateSha256 as string, endId } };
}

/** The tokenizer in dataset.json: its files with their hashes. */
function tokenizerEntry(tokenizer: Tokenizer): DatasetFile["tokenizer"] {
  const contents = tokenizer.contents();
  const hashes = Object.fromEntries(
    Object.entries(contents).map(([name, bytes]) => [
      name,
      createHash("sha256").update(bytes).digest("hex"),
    ]),
  );
  const files = Object.keys(contents) as DatasetFile["tokenizer"]["files"];
  return { sha256: tokenizer.sha256, files, hashes };
}
