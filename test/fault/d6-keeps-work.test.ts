// docs/faults.md, row D6: the work of an unfinished preparation is kept, whatever ended it and
// whatever makes the next call fail. The work continues as far as the input is unchanged, with the
// bytes of one clean run.
import { existsSync } from "node:fs";
import { readdir, readFile, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { describe, expect, it } from "vitest";
import { DataError, LlamaForgeError, UsageError } from "../../lib/core/errors.js";
import { datasetFileName, readDatasetFile } from "../../lib/data/dataset-file.js";
import { Tokenizer } from "../../lib/data/tokenizer.js";
import { journalFile, readJournal } from "../../lib/prepare/journal.js";
import { type PrepareOptions, prepare } from "../../lib/prepare/prepare.js";
import type { Input } from "../../lib/prepare/readers/index.js";
import { readShardLog, ShardLog, shardLogFile } from "../../lib/prepare/shard-log.js";
import {
  contentsOf,
  documents,
  quickstart,
  temporaryFolder,
  threeShards,
  writeFiles,
} from "../data/support.js";

/** `count` records of about 600 bytes that no other list contains. */
function records(count: number, name: string): string[] {
  return Object.values(documents(count, 110)).map((text) =>
    JSON.stringify({ text: `${name} ${text}` }),
  );
}

async function workplace() {
  const folder = await temporaryFolder();
  const sound = gzipSync(records(6000, "c").join("\n"));
  await writeFiles(folder, {
    "a.jsonl": records(2200, "a").join("\n"),
    "b.jsonl": records(2200, "b").join("\n"),
    "c.jsonl.gz": sound,
  });
  const inputs: Input[] = ["a.jsonl", "b.jsonl", "c.jsonl.gz"].map((name) => ({
    path: join(folder, name),
  }));
  const options = (out: string, extra: Partial<PrepareOptions> = {}): PrepareOptions => ({
    inputs,
    out: join(folder, out),
    tokenizer: quickstart,
    shardTokens: 50_000,
    deduplicate: true,
    ...extra,
  });
  /** Stops a preparation once it has this many documents. */
  const stopAt = async (wanted: number) => {
    const stop = new AbortController();
    const onProgress = ({ documents }: { documents: number }) => {
      if (documents >= wanted) stop.abort(new Error("stop"));
    };
    const stopped = prepare(options("out", { signal: stop.signal, onProgress }));
    await expect(stopped).rejects.toThrow("stop");
  };
  const expectClean = async (extra: Partial<PrepareOptions> = {}) => {
    await prepare(options("clean", extra));
    expect(await contentsOf(join(folder, "out"))).toEqual(await contentsOf(join(folder, "clean")));
  };
  return { folder, sound, inputs, options, stopAt, expectClean };
}

const failure = async (options: PrepareOptions): Promise<Error> =>
  await prepare(options).then(
    () => new Error("did not fail"),
    (error: Error) => error,
  );

describe("D6 work that is done", () => {
  it("is kept when a later call fails before it reads anything", async () => {
    const { folder, inputs, options, stopAt, expectClean } = await workplace();
    await stopAt(2000);
    const [first, ...others] = inputs as [Input, ...Input[]];
    const mistakes: Input[] = [
      { path: join(folder, "unmounted/*.jsonl") },
      { path: join(folder, "gone") },
      { ...first, split: "validation" },
      { ...first, kind: "code", languages: ["klingon"] },
      { ...first, kind: "pdf" as never },
      { path: folder, kind: "text" },
    ];
    for (const mistake of mistakes) {
      const error = await failure(options("out", { inputs: [mistake, ...others] }));
      expect(error).toBeInstanceOf(LlamaForgeError);
      expect(existsSync(join(folder, "out.tmp", journalFile))).toBe(true);
    }
    const { resumedDocuments } = await prepare(options("out"));
    expect(resumedDocuments).toBeGreaterThanOrEqual(1500);
    await expectClean();
  }, 60_000);

  it("is kept when a later call has other options, which are told, and discarded only if that is said", async () => {
    const { folder, inputs, options, stopAt, expectClean } = await workplace();
    await stopAt(2000);
    const otherTokenizer = await Tokenizer.load(quickstart);
    const copy = join(folder, "other-tokenizer.json");
    const text = JSON.parse(await readFile(otherTokenizer.file, "utf8"));
    await writeFile(copy, JSON.stringify({ ...text, padding: null }));
    const mistakes: [Partial<PrepareOptions>, string][] = [
      [{ shardTokens: 60_000 }, "shardTokens was 50000 and is 60000."],
      [
        { deduplicate: false, validationFraction: 0.1 },
        "validationFraction was 0.05 and is 0.1; deduplicate was true and is false.",
      ],
      [{ inputs: inputs.slice(1) }, "other inputs."],
      [{ tokenizer: copy }, "another tokenizer."],
    ];
    for (const [mistake, told] of mistakes) {
      const error = await failure(options("out", mistake));
      expect(error).toBeInstanceOf(UsageError);
      expect(error.message).toMatch(/out\.tmp holds [12],\d{3} documents of unfinished work/);
      expect(error.message).toContain(`cannot go on with: ${told}`);
      expect(error.message).toContain("discard it: startOver");
    }
    // Earlier versions did not record their options.
    const file = join(folder, "out.tmp", journalFile);
    const noted = await readFile(file, "utf8");
    await writeFile(file, JSON.stringify({ ...JSON.parse(noted), options: undefined }));
    const error = await failure(options("out", { shardTokens: 60_000 }));
    expect(error.message).toContain("other options or another tokenizer, by an earlier version");
    await writeFile(file, noted);

    expect((await prepare(options("out"))).resumedDocuments).toBeGreaterThanOrEqual(1500);
    await expectClean();

    await stopAt(2000);
    const other = { shardTokens: 60_000 };
    const { resumedDocuments } = await prepare(options("out", { ...other, startOver: true }));
    expect(resumedDocuments).toBe(0);
    await expectClean(other);
  }, 60_000);

  it("is kept when a late file is damaged, and gone on with when the file is replaced", async () => {
    const { folder, sound, options, expectClean } = await workplace();
    const path = join(folder, "c.jsonl.gz");
    await writeFile(path, sound.subarray(0, sound.length * 0.9));
    const error = await failure(options("out"));
    expect(error).toBeInstanceOf(DataError);
    expect(error.message).toMatch(/c\.jsonl\.gz: unexpected end of file/);
    expect(error.message).toMatch(/what is done so far stays in .*out\.tmp/);
    // The first call had read far into this file, which is replaced now.
    const journal = await readJournal(join(folder, "out.tmp"));
    expect(journal?.checkpoints.map(({ position }) => position.file)).toEqual([2, 2]);
    expect(journal?.checkpoints[0]?.position.record).toBeGreaterThan(1000);
    await writeFile(path, sound);
    const { resumedDocuments } = await prepare(options("out"));
    expect(resumedDocuments).toBe(4400);
    await expectClean();
  }, 60_000);

  it("is gone on with when files behind it change, and not when one before it does", async () => {
    const { folder, sound, options, stopAt, expectClean } = await workplace();
    await stopAt(3000);
    const more = Buffer.concat([sound, gzipSync(`\n${records(10, "d").join("\n")}`)]);
    await writeFile(join(folder, "c.jsonl.gz"), more);
    expect((await prepare(options("out"))).resumedDocuments).toBeGreaterThan(2500);
    await expectClean();

    await stopAt(3000);
    await writeFile(join(folder, "a.jsonl"), records(2201, "a").join("\n"));
    expect((await failure(options("out"))).message).toContain(
      "files that it has read have changed",
    );
    expect((await prepare(options("out", { startOver: true }))).resumedDocuments).toBe(0);
    await expectClean();
  }, 60_000);

  it("is gone on with when what ended it is now to be left out, and not the other way round", async () => {
    const { folder, options, expectClean } = await workplace();
    const bad = [...records(2000, "b"), "no record", ...records(200, "e")].join("\n");
    await writeFile(join(folder, "b.jsonl"), bad);
    expect((await failure(options("out"))).message).toMatch(/not JSON.*what is done so far stays/s);
    const skipping = { badRecords: "skip" } as const;
    const { resumedDocuments, dataset } = await prepare(options("out", skipping));
    expect(resumedDocuments).toBeGreaterThan(1500);
    expect(dataset.sources[1]?.skipped?.bad).toBe(1);
    await expectClean(skipping);

    const stop = new AbortController();
    const onProgress = ({ documents }: { documents: number }) => documents > 4300 && stop.abort();
    await failure(options("out", { ...skipping, signal: stop.signal, onProgress }));
    const again = await failure(options("out"));
    expect(again.message).toContain('badRecords was "skip" and is "error"');
    const afresh = await failure(options("out", { startOver: true }));
    expect(afresh.message).toMatch(/record 2000 .*not JSON/);
  }, 60_000);

  it("is gone on with when a shard that was refused may pass", async () => {
    const { folder, options, expectClean } = await workplace();
    const junk = JSON.stringify({ text: " ".repeat(400_000) });
    await writeFile(join(folder, "b.jsonl"), [...records(2000, "b"), junk].join("\n"));
    expect((await failure(options("out"))).message).toMatch(
      /raise maxRunShare\n {2}what is done so far/,
    );
    const lenient = { maxRunShare: 0.9 };
    expect((await prepare(options("out", lenient))).resumedDocuments).toBeGreaterThan(1500);
    await expectClean(lenient);
  }, 60_000);

  it("does not stay where nothing of it can be gone on with", async () => {
    const { folder, options } = await workplace();
    await writeFile(join(folder, "a.jsonl"), "no record");
    expect(await failure(options("out"))).toBeInstanceOf(DataError);
    expect((await readdir(folder)).filter((name) => name.startsWith("out"))).toEqual([]);
  });
});

describe("D6 many shards", () => {
  it("are noted at a cost that does not grow with their number", async () => {
    const { folder, inputs, options, expectClean } = await workplace();
    const small = { inputs: inputs.slice(0, 1), shardTokens: 2000, deduplicate: false };
    const stop = new AbortController();
    const extra = {
      ...small,
      signal: stop.signal,
      onProgress: () => stop.abort(new Error("stop")),
    };
    await expect(prepare(options("out", extra))).rejects.toThrow("stop");
    const journal = await readJournal(join(folder, "out.tmp"));
    const finished = journal?.checkpoints[0]?.writers.train.finished as number;
    expect(finished).toBeGreaterThan(100);
    expect((await readShardLog(join(folder, "out.tmp"))).train.length).toBe(finished);
    expect((await stat(join(folder, "out.tmp", journalFile))).size).toBeLessThan(3000);
    expect((await prepare(options("out", small))).resumedDocuments).toBeGreaterThan(1000);
    await expectClean(small);
  }, 60_000);

  it("are read back whatever a crash left of a line, the last line of each", async () => {
    const folder = await temporaryFolder();
    const shard = (number: number, tokens: number) => ({
      file: `train-${String(number).padStart(5, "0")}.bin`,
      tokens,
      documents: 1,
      bytes: 1,
      sha256: "",
      indexSha256: "",
      repeatedTokens: 0,
    });
    await writeFile(join(folder, shardLogFile), '\n{"file":"train-00000.bin","tok');
    for (const entries of [[shard(0, 1), shard(1, 2)], [shard(100_000, 5)], [shard(1, 3)]]) {
      const log = await ShardLog.open(folder);
      await log.add(entries);
      await log.close();
    }
    const { train, validation } = await readShardLog(folder);
    expect([train[0]?.tokens, train[1]?.tokens, train[100_000]?.tokens]).toEqual([1, 3, 5]);
    expect(validation).toEqual([]);
  });

  const copyOfThreeShards = threeShards();

  it("may be more than 100,000", async () => {
    const folder = await copyOfThreeShards();
    const dataset = await readDatasetFile(folder);
    const [shard] = dataset.splits.train.shards as [(typeof dataset.splits.train.shards)[0]];
    const count = 100_001;
    dataset.splits.train = {
      tokens: shard.tokens * count,
      documents: shard.documents * count,
      bytes: shard.bytes * count,
      shards: Array.from({ length: count }, (_, number) => ({
        ...shard,
        file: `train-${String(number).padStart(5, "0")}.bin`,
      })),
    };
    await writeFile(join(folder, datasetFileName), JSON.stringify(dataset));
    expect((await readDatasetFile(folder)).splits.train.shards.at(-1)?.file).toBe(
      "train-100000.bin",
    );
    // The folder still counts as a data set that may be replaced.
    await writeFiles(folder, {
      "train-100000.bin": "",
      "train-100000.idx": "",
      "../in.txt": "text",
    });
    const inputs = [join(folder, "../in.txt")];
    await prepare({ inputs, out: folder, tokenizer: quickstart });
    expect(await readFile(join(folder, datasetFileName), "utf8")).not.toMatch("train-100000");
  }, 60_000);
});
