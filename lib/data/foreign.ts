import { createHash } from "node:crypto";
import { dirname, isAbsolute, join } from "node:path";
import { z } from "zod";
import { boundedList } from "../core/bounded-list.js";
import { ArgumentError, DataError, NoTokensError } from "../core/errors.js";
import { hostArray } from "../core/host-array.js";
import { globExpression, globRoot, isGlob } from "../files/glob.js";
import { listFiles } from "../files/list-folder.js";
import { describePassedOver, isUnreadable } from "../files/passed-over.js";
import { openRegular, readSmallFile, sizeLimits, utf8Of } from "../files/small-file.js";
import { readYaml } from "../files/yaml.js";
import { bytesPerId, type Split } from "./dataset-file.js";
import { type ForeignHeader, foreignFormats } from "./foreign-formats.js";
import { RunCounter } from "./run-counter.js";
import type { TokenRow } from "./shards.js";
import { FilePool, TokenFile } from "./token-file.js";
import { Tokenizer } from "./tokenizer.js";

/** Number of blocks that are inspected when a description is opened. */
const samples = 64;
const sampleTokens = 4096;

const path = z.string().min(1);
const descriptionSchema = z
  .strictObject({
    format: z.enum(Object.keys(foreignFormats) as [keyof typeof foreignFormats]),
    /** Files, or patterns of files, read in the order of their names. */
    train: z.union([path, z.array(path).min(1)]),
    validation: z.union([path, z.array(path).min(1)]).optional(),
    tokenizer: path.optional(),
    vocabSize: z
      .int()
      .min(1)
      .max(2 ** 31)
      .optional(),
    eosId: z.int().min(0).optional(),
    documentStart: z.enum(["none", "bos", "eos"]).optional(),
    documentEnd: z.enum(["none", "eos"]).optional(),
  })
  .refine(
    ({ tokenizer, vocabSize, eosId }) =>
      tokenizer === undefined
        ? vocabSize !== undefined && eosId !== undefined && eosId < vocabSize
        : vocabSize === undefined && eosId === undefined,
    { message: "expected tokenizer, or vocabSize with an eosId below it" },
  );

type Description = z.output<typeof descriptionSchema>;

/** Whether a source of a mixture is a description of foreign files rather than a folder made by `prepare`. */
export function isForeign(source: string): boolean {
  return /\.ya?ml$/i.test(source);
}

/**
 * Reads a description of token files that another trainer's scripts wrote. The files are used where
 * they are:
 *
 *     format: litgpt                       # or nanogpt, llmc
 *     train: packed/train_slim*.bin        # paths start at the description's folder
 *     validation: packed/validation*.bin
 *     tokenizer: llama                     # the tokenizer they were made with; or vocabSize and eosId
 *
 * The headers of all files are checked. Of the tokens, sample blocks are checked, so that padding
 * (`repeatedShare`) and ids outside the vocabulary show before training. All other tokens are
 * checked when they are read.
 * @throws DataError naming the file and what is wrong
 */
export async function readForeign(file: string, split: Split): Promise<TokenRow> {
  const description = await readDescription(file);
  const patterns = description[split];
  if (patterns === undefined) throw new NoTokensError(`[data] ${file} names no ${split} files`);
  const base = (name: string): string => (isAbsolute(name) ? name : join(dirname(file), name));
  const vocabulary = await readVocabulary(description, base);
  const paths = await expand([patterns].flat().map(base));
  const files: TokenRow["files"][number][] = [];
  let dtype: ForeignHeader["dtype"] | null = null;
  for (const name of paths) {
    const header = await readHeader(name, description.format);
    dtype ??= header.dtype;
    if (header.dtype !== dtype) {
      throw new DataError(`[data] ${name} holds ${header.dtype}, the files before it ${dtype}`);
    }
    files.push({ path: name, tokens: header.tokens, headerBytes: header.headerBytes });
  }
  const { documentStart, documentEnd } = { ...foreignFormats[description.format], ...description };
  const row = {
    folder: file,
    split,
    files,
    hashed: [],
    dtype: dtype as ForeignHeader["dtype"],
    ...vocabulary,
    marks: {
      startId: { none: null, bos: vocabulary.bosId, eos: vocabulary.eosId }[documentStart],
      endId: documentEnd === "eos" ? vocabulary.eosId : null,
    },
    bytesPerToken: 0,
  };
  return { ...row, ...(await inspect(row)) };
}

async function readDescription(file: string): Promise<Description> {
  let text: string;
  try {
    text = utf8Of(await readSmallFile(file, { limit: sizeLimits.recipe }));
  } catch (cause) {
    throw new DataError(`[data] cannot read ${file}: ${(cause as Error).message}`, { cause });
  }
  const read = readYaml(text);
  if ("faults" in read) {
    const faults = read.faults.map(({ place, message }) => `  ${place}: ${message}`);
    throw new DataError(`[data] ${file} is no sound YAML:\n${boundedList(faults)}`);
  }
  const parsed = descriptionSchema.safeParse(read.value);
  if (parsed.success) return parsed.data;
  const problems = parsed.error.issues.map(
    (issue) => `  ${issue.path.join(".") || "(file)"}: ${issue.message}`,
  );
  throw new DataError(`[data] ${file} describes no token files:\n${boundedList(problems)}`);
}

async function readVocabulary(description: Description, base: (name: string) => string) {
  if (description.tokenizer === undefined) {
    const { vocabSize = 0, eosId = 0 } = description;
    const name = `${vocabSize} ids, end of text ${eosId}`;
    const tokenizerSha256 = createHash("sha256").update(name).digest("hex");
    return { vocabSize, eosId, bosId: null, tokenizer: null, tokenizerSha256 };
  }
  const tokenizer = base(description.tokenizer);
  const { vocabSize, eosId, bosId, sha256 } = await Tokenizer.load(tokenizer);
  return { vocabSize, eosId, bosId, tokenizer, tokenizerSha256: sha256 };
}

/** Expands paths and patterns to files; those of one pattern are sorted by name. */
async function expand(patterns: readonly string[]): Promise<string[]> {
  const paths: string[] = [];
  for (const pattern of patterns) {
    if (!isGlob(pattern)) {
      paths.push(pattern);
      continue;
    }
    const expression = globExpression(pattern);
    const { files, passed } = await listFiles(globRoot(pattern), new Set());
    const found = files.filter((file) => expression.test(file.path));
    const lost = passed.filter(
      (entry) => isUnreadable(entry) && (entry.unlisted || expression.test(entry.path)),
    );
    if (lost.length > 0) {
      throw new DataError(`[data] ${pattern}: cannot read ${describePassedOver(lost).join("; ")}`);
    }
    if (found.length === 0) throw new DataError(`[data] ${pattern}: matches no file`);
    paths.push(...found.map((file) => file.path));
  }
  return paths;
}

async function readHeader(
  path: string,
  name: Description["format"],
): Promise<ForeignHeader & { tokens: number }> {
  const format = foreignFormats[name];
  const handle = await openRegular(path).catch((cause: Error) => {
    throw new DataError(`[data] cannot read ${path}: ${cause.message}`, { cause });
  });
  try {
    const { size } = await handle.stat();
    const bytes = Buffer.alloc(format.headerBytes);
    const { bytesRead } = await handle.read(bytes, 0, bytes.length, 0);
    const header = format.parse(bytes.subarray(0, bytesRead), path);
    const content = size - header.headerBytes;
    const tokens = content / bytesPerId[header.dtype];
    if (!Number.isInteger(tokens)) {
      throw new DataError(
        `[data] ${path} has ${content} bytes: no whole number of ${header.dtype} ids`,
      );
    }
    if (tokens === 0) throw new DataError(`[data] ${path} holds no tokens`);
    if (header.tokens !== null && header.tokens !== tokens) {
      throw new DataError(
        `[data] ${path} has ${tokens} tokens, but its header says ${header.tokens}`,
      );
    }
    if (tokens % header.multipleOf !== 0) {
      throw new DataError(
        `[data] ${path} has ${tokens} tokens: no whole number of its chunks of ${header.multipleOf}`,
      );
    }
    return { ...header, tokens };
  } catch (cause) {
    if (cause instanceof DataError || cause instanceof ArgumentError) throw cause;
    throw new DataError(`[data] cannot read ${path}: ${(cause as Error).message}`, { cause });
  } finally {
    await handle.close();
  }
}

/** Inspects blocks all over the files and at their ends, where padding usually is. */
async function inspect(
  row: Omit<TokenRow, "repeatedShare" | "fingerprint">,
): Promise<Pick<TokenRow, "repeatedShare" | "fingerprint">> {
  const { files } = row;
  const hash = createHash("sha256").update(
    `${row.dtype} ${row.vocabSize} ${row.tokenizerSha256}\n`,
  );
  for (const { tokens } of files) hash.update(`${tokens}\n`);
  const runs = new RunCounter();
  let seen = 0;
  const pool = new FilePool();
  try {
    for (let sample = 0; sample < samples; sample++) {
      const file = files[Math.floor((sample * files.length) / samples)] as (typeof files)[number];
      const reader = new TokenFile(file.path, file.tokens, row, pool, file.headerBytes);
      const length = Math.min(sampleTokens, file.tokens);
      const middle = Math.floor(((file.tokens - length) * (sample + 1)) / samples);
      for (const start of new Set([middle, file.tokens - length])) {
        const ids = hostArray("data", Int32Array, length);
        await reader.read(start, ids);
        hash.update(ids);
        runs.add(ids);
        runs.finish();
        seen += length;
      }
    }
  } finally {
    await pool.close();
  }
  return { repeatedShare: runs.repeated / seen, fingerprint: hash.digest("hex") };
}
