// The hashes of a run's shards, checked while it trains, and those of the tokenizer's files.
import { readFile, rename, utimes, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, it } from "vitest";
import { DataError } from "../../lib/core/errors.js";
import { ShardCheck } from "../../lib/data/shard-check.js";
import { TokenDataset } from "../../lib/data/shards.js";
import { verifyDataset } from "../../lib/data/verify.js";
import { Trainer } from "../../lib/train/trainer.js";
import { tinyConfig } from "../support/tiny-run.js";
import { temporaryFolder, threeShards } from "./support.js";

const copy = threeShards();
const longAgo = new Date(1_500_000_000_000);

async function flip(path: string): Promise<void> {
  const bytes = await readFile(path);
  const at = bytes.length >> 1;
  bytes[at] = (bytes[at] as number) ^ 1;
  await writeFile(path, bytes);
  await utimes(path, longAgo, longAgo);
}

async function checkOf(folder: string, onDamage: "stop" | "warn" = "stop", firstBytes = 2 ** 28) {
  const dataset = await TokenDataset.open(folder, { sequenceLength: 8 });
  const notices: string[] = [];
  const memory = join(folder, "..", "data-verified.json");
  const onNotice = (message: string) => void notices.push(message);
  return {
    notices,
    memory,
    check: new ShardCheck(dataset.hashedFiles, { onDamage, memory, onNotice, firstBytes }),
  };
}

it("is done before the first step for small data, and is remembered until a file is written to", async () => {
  const folder = await copy();
  const shard = join(folder, "train-00001.bin");
  await utimes(shard, longAgo, longAgo);
  const first = await checkOf(folder);
  await first.check.start();
  await first.check.close();
  expect(first.check.checked).toBe(first.check.files);
  expect(first.check.files).toBeGreaterThan(4);
  expect(first.notices).toEqual([]);
  // A bit flips after its shard was hashed, with size and time unchanged. The shard is not hashed
  // again.
  await flip(shard);
  const second = await checkOf(folder);
  await second.check.start();
  expect(second.check.checked).toBe(second.check.files);
  // A write changes the time, so the shard is hashed again.
  await utimes(shard, new Date(), new Date(2_000_000_000_000));
  const third = await checkOf(folder);
  await expect(third.check.start()).rejects.toThrow(/train-00001\.bin has changed/);
});

it.each(["train-00000.bin", "train-00002.idx"])("finds one bit in %s", async (name) => {
  const folder = await copy();
  await flip(join(folder, name));
  const { check } = await checkOf(folder);
  const failure = check.start();
  await expect(failure).rejects.toBeInstanceOf(DataError);
  await expect(failure).rejects.toThrow(join(folder, name));
  const warning = await checkOf(folder, "warn");
  await warning.check.start();
  expect(warning.notices.join()).toMatch(new RegExp(`${name} has changed.*training goes on`));
});

it("goes on in the background where data is large, and tells of what it finds there", async () => {
  const folder = await copy();
  await flip(join(folder, "train-00002.bin"));
  const { check, notices } = await checkOf(folder, "stop", 0);
  const found = new Promise<void>((resolve) => {
    check.onFailure = resolve;
  });
  await check.start();
  await found;
  expect(check.failure?.message).toMatch(/train-00002\.bin has changed/);
  await check.close();
  expect(notices).toEqual([]);
  // A run that ends before all hashes are checked says how many were.
  const other = await checkOf(await copy(), "stop", 0);
  const started = other.check.start();
  await other.check.close();
  await started;
  expect(other.notices.join()).toMatch(/\d of the data's \d+ files were hashed by the end/);
});

it("ends a run with exit code 3 before its first step, or warns, or does not look", async () => {
  const folder = await copy();
  await flip(join(folder, "train-00000.bin"));
  const out = join(await temporaryFolder(), "run");
  const config = (verifyShards?: string) =>
    tinyConfig(folder, out, {
      evaluate: { every: 0 },
      data: { train: { [folder]: 1 }, ...(verifyShards && { verifyShards }) },
    });
  const refused = Trainer.create(config());
  await expect(refused).rejects.toThrow(/train-00000\.bin has changed/);
  await expect(refused).rejects.toMatchObject({ exitCode: 3 });
  for (const [how, expected] of [
    ["warn", /train-00000\.bin has changed/],
    ["off", /^(?!.*\.bin has changed)/s],
  ] as const) {
    const notices: string[] = [];
    const onNotice = (message: string) => void notices.push(message);
    const trainer = await Trainer.create(config(how), { onNotice });
    trainer.stop();
    for await (const _ of trainer.run());
    trainer.dispose();
    expect(notices.join()).toMatch(expected);
  }
});

it("covers the tokenizer's files, and says what an older data set has no hash of", async () => {
  const folder = await copy();
  const file = join(folder, "tokenizer_config.json");
  const text = await readFile(file, "utf8");
  await writeFile(file, text.replace('"add_bos_token": false', '"add_bos_token": true '));
  await expect(verifyDataset(folder)).rejects.toThrow(/tokenizer_config\.json has changed/);
  const out = join(await temporaryFolder(), "run");
  const training = Trainer.create(tinyConfig(folder, out));
  await expect(training).rejects.toThrow(/tokenizer_config\.json has changed/);
  await writeFile(file, text);
  await verifyDataset(folder);

  const description = join(folder, "dataset.json");
  const dataset = JSON.parse(await readFile(description, "utf8"));
  delete dataset.tokenizer.hashes;
  await writeFile(description, JSON.stringify(dataset));
  const notices: string[] = [];
  await verifyDataset(folder, (notice) => notices.push(notice));
  expect(notices.join()).toMatch(/tokenizer_config\.json is not covered/);

  await writeFile(join(folder, "special_tokens_map.json"), '{"eos_token": "<s>"}');
  await expect(verifyDataset(folder)).rejects.toThrow(/special_tokens_map\.json is not listed/);
  await rename(join(folder, "special_tokens_map.json"), join(folder, "notes.txt"));
  await verifyDataset(folder, (notice) => notices.push(notice));
  expect(notices.at(-1)).toMatch(/no part of .*"notes\.txt"/);
});

it("a data description with 20,000 wrong shards gives a short error", async () => {
  const folder = await copy();
  const description = join(folder, "dataset.json");
  const dataset = JSON.parse(await readFile(description, "utf8"));
  const [shard] = dataset.splits.train.shards;
  dataset.splits.train.shards = Array.from({ length: 20_000 }, () => shard);
  await writeFile(description, JSON.stringify(dataset));
  const error = await TokenDataset.open(folder, { sequenceLength: 8 }).catch((e: Error) => e);
  expect(error).toBeInstanceOf(DataError);
  expect((error as Error).message.length).toBeLessThan(5000);
  expect((error as Error).message).toMatch(/and (19|20),\d{3} more/);
});
