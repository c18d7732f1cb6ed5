import { mkdir, open, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { library, round, values, work } from "./options.mjs";

/** Checks that a sparse shard of 5 GB is opened and read at its ends in bounded memory. */
export async function sparseShard() {
  const { TokenDataset } = await import(library("data/shards.js"));
  const { Tokenizer } = await import(library("data/tokenizer.js"));
  const folder = join(work, "sparse");
  await mkdir(folder);
  const tokenizer = await Tokenizer.load(values.tokenizer);
  const files = await tokenizer.copyTo(folder);
  const tokens = 2_684_354_560;
  const shard = await open(join(folder, "train-00000.bin"), "w");
  await shard.truncate(tokens * 2);
  await shard.write(Uint8Array.of(7, 0), 0, 2, tokens * 2 - 2);
  await shard.close();
  const index = Buffer.alloc(16);
  index.writeBigUInt64LE(BigInt(tokens), 8);
  await writeFile(join(folder, "train-00000.idx"), index);
  const none = { tokens: 0, documents: 0, bytes: 0, shards: [] };
  const sha256 = "0".repeat(64);
  const entry = {
    file: "train-00000.bin",
    tokens,
    documents: 1,
    bytes: 1,
    sha256,
    indexSha256: sha256,
    repeatedTokens: 0,
  };
  const { vocabSize, eosId, bosId } = tokenizer;
  const dataset = {
    format: "llamaforge-tokens",
    version: 1,
    dtype: "uint16",
    vocabSize,
    eosId,
    bosId,
    documentStart: "none",
    documentEnd: "eos",
    tokenizer: { sha256: tokenizer.sha256, files },
    validation: { fraction: 0, threshold: 0 },
    splits: { train: { tokens, documents: 1, bytes: 1, shards: [entry] }, validation: none },
    sources: [{ path: "x", kind: "text", documents: 1, bytes: 1 }],
  };
  await writeFile(join(folder, "dataset.json"), JSON.stringify(dataset));
  const start = performance.now();
  const opened = await TokenDataset.open(folder, { sequenceLength: 2047 });
  const ids = new Int32Array(2048);
  await opened.read(opened.windows - 1, ids);
  const last = opened.windows * 2047;
  const right = last === tokens - 1 ? ids[2047] === 7 : ids.every((id) => id === 0);
  await opened.close();
  if (!right) process.exitCode = 1;
  return {
    mb: round((tokens * 2) / 1e6, 0),
    windows: opened.windows,
    lastWindowRight: right,
    seconds: round((performance.now() - start) / 1000, 1),
    peakMb: round((process.resourceUsage().maxRSS * 1024) / 1e6, 0),
  };
}
