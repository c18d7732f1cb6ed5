import { createHash } from "node:crypto";
import { join } from "node:path";
import { z } from "zod";
import { boundedList } from "../core/bounded-list.js";
import { DataError } from "../core/errors.js";
import { readSmallFile, sizeLimits, utf8Of } from "../files/small-file.js";
import { companionNames } from "./tokenizer-files.js";

/*
 * A data set is a folder:
 *
 *   dataset.json                what is below
 *   train-00000.bin …           tokens, raw little-endian uint16 (uint32 from 65,537 ids on), no header
 *   train-00000.idx …           document index: little-endian uint64 offsets in tokens, one per document of the shard,
 *                               and the shard's number of tokens at the end
 *   validation-00000.bin .idx   the held-out documents, if there are any
 *   train-00000.mask …          of chats and pairs: a byte per token with the bits of `maskBits`
 *   chat_template.jinja         of chats, and of pairs of messages: the template that wrote them
 *   tokenizer.json …            the tokenizer's files
 *
 * A document is its tokens and, by default, the end-of-text id; `documentStart` and `documentEnd`
 * say what stands around it. A shard holds whole documents. A data set of chats has version 2, which
 * earlier versions of this library refuse; its template alone decides which tokens stand around a
 * chat, so both marks are "none".
 *
 * A data set of preferences has version 3. A document is a pair: the prompt with the preferred
 * answer, then the prompt with the rejected one. What stands around each of the two is among their
 * tokens, so both marks are "none".
 */

export const datasetFileName = "dataset.json";
export const datasetFormat = "llamaforge-tokens";
export const datasetVersion = 1;
export const chatDatasetVersion = 2;
export const pairDatasetVersion = 3;

/** Bits of a token in the mask. */
export const maskBits = {
  /** The loss counts the token. */
  counted: 1,
  /** The token belongs to the rejected half of a pair. */
  rejected: 2,
} as const;

/** File of a data set of chats or pairs with the template that wrote them. */
export const chatTemplateFile = "chat_template.jinja";

export const splitNames = ["train", "validation"] as const;
export type Split = (typeof splitNames)[number];
export type TokenDType = "uint16" | "uint32";

export const bytesPerId: Readonly<Record<TokenDType, number>> = { uint16: 2, uint32: 4 };

/** Size of an entry of the document index. */
export const indexEntryBytes = 8;

/** Five digits or more: a large text in small shards makes more than 100,000 of them. */
const shardPattern = /^(train|validation)-(\d{5,10})\.bin$/;

const count = z.int().min(0);
const tokenizerFile = z.enum(["tokenizer.json", ...companionNames]);
const hash = z.string().regex(/^[0-9a-f]{64}$/, "expected a SHA-256 in hexadecimal");

const shardSchema = z.strictObject({
  // The pattern also keeps a hostile dataset.json from naming files elsewhere.
  file: z.string().regex(shardPattern, "expected e.g. train-00000.bin"),
  tokens: count,
  documents: count,
  /** UTF-8 bytes of the documents' text. */
  bytes: count,
  sha256: hash,
  indexSha256: hash,
  /** Tokens in runs of one token, see `RunCounter`. */
  repeatedTokens: count,
  /** Of chats and pairs: tokens that the loss counts, and the hash of the mask. */
  counted: count.optional(),
  maskSha256: hash.optional(),
});

const splitSchema = z.strictObject({
  tokens: count,
  documents: count,
  bytes: count,
  shards: z.array(shardSchema),
});

const datasetSchema = z
  .strictObject({
    format: z.literal(datasetFormat),
    version: z.literal([datasetVersion, chatDatasetVersion, pairDatasetVersion]),
    dtype: z.enum(["uint16", "uint32"]),
    vocabSize: z
      .int()
      .min(1)
      .max(2 ** 31),
    eosId: count,
    bosId: count.nullable(),
    /** Tokens around a document. */
    documentStart: z.enum(["none", "bos"]),
    documentEnd: z.enum(["none", "eos", "token"]),
    /** The special token behind documents, if it is not the end-of-text token. */
    endId: count.optional(),
    tokenizer: z.strictObject({
      sha256: hash,
      files: z.array(tokenizerFile),
      /** SHA-256 of each of the files. Data sets of earlier versions lack it. */
      hashes: z.partialRecord(tokenizerFile, hash).optional(),
    }),
    /** A document is held out if its hash, as a fraction of all hashes, is below `threshold`. */
    validation: z.strictObject({ fraction: z.number(), threshold: z.number() }),
    /** Whether every document differs from all others. */
    deduplicated: z.boolean().optional(),
    /** Only in data sets of chats. */
    chats: z
      .strictObject({
        templateSha256: hash,
        /** Special token that ends the assistant's message; null if the template writes none. */
        endId: count.nullable(),
      })
      .optional(),
    /** Only in data sets of preferences. */
    pairs: z
      .strictObject({
        /** Null for pairs of plain text. */
        templateSha256: hash.nullable(),
        /** Token that ends an answer; null if none does. */
        endId: count.nullable(),
      })
      .optional(),
    splits: z.strictObject({ train: splitSchema, validation: splitSchema }),
    sources: z.array(
      z.strictObject({
        path: z.string(),
        kind: z.enum(["text", "code", "records", "chat", "preference"]),
        documents: count,
        bytes: count,
        tokens: count.optional(),
        /** Numbers of skipped documents, by reason. */
        skipped: z.record(z.string(), count).optional(),
        /** Numbers of unread files and folders of the input, by reason. */
        passedOver: z.record(z.string(), count).optional(),
        /** Only in data sets made by version 0.1. */
        emptyFiles: count.optional(),
      }),
    ),
  })
  .superRefine((dataset, context) => {
    for (const name of splitNames) {
      const split = dataset.splits[name];
      for (const field of ["tokens", "documents", "bytes"] as const) {
        const sum = split.shards.reduce((total, shard) => total + shard[field], 0);
        if (sum !== split[field]) {
          context.addIssue({
            code: "custom",
            path: ["splits", name, field],
            message: `${split[field]}, but its shards add up to ${sum}`,
          });
        }
      }
      for (const [index, shard] of split.shards.entries()) {
        if (shard.file !== shardFile(name, index)) {
          context.addIssue({
            code: "custom",
            path: ["splits", name, "shards", index, "file"],
            message: `expected ${shardFile(name, index)}, got ${shard.file}`,
          });
        }
      }
    }
    if (dataset.dtype === "uint16" && dataset.vocabSize > 65536) {
      context.addIssue({
        code: "custom",
        path: ["dtype"],
        message: `uint16 cannot hold ${dataset.vocabSize} ids`,
      });
    }
    const { chats, pairs } = dataset;
    for (const [name, version] of [
      ["chats", chatDatasetVersion],
      ["pairs", pairDatasetVersion],
    ] as const) {
      if ((dataset.version === version) === (dataset[name] !== undefined)) continue;
      const message = `goes with version ${version} alone`;
      context.addIssue({ code: "custom", path: [name], message });
    }
    const answers = chats !== undefined || pairs !== undefined;
    for (const [name, { shards }] of Object.entries(dataset.splits)) {
      for (const [index, { counted, maskSha256 }] of shards.entries()) {
        const masked = counted !== undefined && maskSha256 !== undefined;
        if (masked === answers) continue;
        const path = ["splits", name, "shards", index, "maskSha256"];
        const message = "chats and pairs, and they alone, have a mask";
        context.addIssue({ code: "custom", path, message });
      }
    }
    if (!answers && dataset.documentStart === "none" && dataset.documentEnd === "none") {
      context.addIssue({
        code: "custom",
        path: ["documentEnd"],
        message: "nothing parts documents",
      });
    }
    if (dataset.documentStart === "bos" && dataset.bosId === null) {
      context.addIssue({ code: "custom", path: ["bosId"], message: "documents start with it" });
    }
    const { documentEnd, endId } = dataset;
    if ((documentEnd === "token") !== (endId !== undefined)) {
      const message = 'goes with documentEnd "token" alone';
      context.addIssue({ code: "custom", path: ["endId"], message });
    }
    if (endId !== undefined && endId >= dataset.vocabSize) {
      context.addIssue({ code: "custom", path: ["endId"], message: "is outside the vocabulary" });
    }
    if (dataset.eosId >= dataset.vocabSize) {
      context.addIssue({ code: "custom", path: ["eosId"], message: "is outside the vocabulary" });
    }
  });

export type DatasetFile = z.infer<typeof datasetSchema>;
export type ShardEntry = z.infer<typeof shardSchema>;
export type SplitEntry = z.infer<typeof splitSchema>;

export function shardFile(split: Split, index: number): string {
  return `${split}-${String(index).padStart(5, "0")}.bin`;
}

/** Parses the name of a shard; null for other names. */
export function parseShardFile(name: string): { split: Split; number: number } | null {
  const [, split, number] = shardPattern.exec(name) ?? [];
  return split === undefined ? null : { split: split as Split, number: Number(number) };
}

/** Name of the document index of a shard. */
export function indexFile(shard: string): string {
  return shard.replace(/\.bin$/, ".idx");
}

/** Name of the mask of a shard of chats or pairs. */
export function maskFile(shard: string): string {
  return shard.replace(/\.bin$/, ".mask");
}

/**
 * Reads and checks a folder's dataset.json.
 * @throws DataError naming the file and every field that is wrong
 */
export async function readDatasetFile(folder: string): Promise<DatasetFile> {
  const file = join(folder, datasetFileName);
  let text: string;
  try {
    text = utf8Of(await readSmallFile(file, { limit: sizeLimits.dataset }));
  } catch (cause) {
    throw new DataError(
      `[data] cannot read ${file}: ${(cause as Error).message}; expected a folder made by \`llamaforge prepare\``,
      { cause },
    );
  }
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (cause) {
    throw new DataError(`[data] ${file}: not JSON: ${(cause as Error).message}`, { cause });
  }
  const result = datasetSchema.safeParse(json);
  if (result.success) return result.data;
  const problems = result.error.issues.map(
    (issue) => `  ${issue.path.join(".") || "(file)"}: ${issue.message}`,
  );
  throw new DataError(`[data] ${file} is not a valid data set:\n${boundedList(problems)}`);
}

export function serialiseDatasetFile(dataset: DatasetFile): string {
  return `${JSON.stringify(datasetSchema.parse(dataset), null, 2)}\n`;
}

/**
 * Identifies the tokens of a split. Equal tokens in the same order have the same fingerprint,
 * wherever they lie.
 */
export function splitFingerprint(dataset: DatasetFile, split: Split): string {
  const digest = createHash("sha256");
  digest.update(`${dataset.dtype} ${dataset.vocabSize} ${dataset.tokenizer.sha256}\n`);
  for (const { sha256, indexSha256, maskSha256 } of dataset.splits[split].shards) {
    digest.update(`${sha256}\n`);
    // Windows of chats and pairs depend on where these begin.
    if (maskSha256 !== undefined) digest.update(`${indexSha256} ${maskSha256}\n`);
  }
  return digest.digest("hex");
}
