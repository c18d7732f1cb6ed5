import { spawn } from "node:child_process";
import { mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { beforeAll, describe, expect, it } from "vitest";
import { ArgumentError, DataError, UsageError } from "../../lib/core/errors.js";
import { TokenDataset } from "../../lib/data/shards.js";
import { Tokenizer } from "../../lib/data/tokenizer.js";
import { verifyDataset } from "../../lib/data/verify.js";
import { markFile } from "../../lib/files/own-folder.js";
import { type PrepareOptions, type PrepareProgress, prepare } from "../../lib/prepare/prepare.js";
import { RunCounter } from "../../lib/prepare/shard-writer.js";
import {
  compileLibrary,
  contentsOf,
  documents,
  fixtures,
  quickstart,
  temporaryFolder,
  writeFiles,
} from "./support.js";

let tokenizer: Tokenizer;
beforeAll(async () => {
  tokenizer = await Tokenizer.load(quickstart);
});

/** A folder with the input `in`. `run` prepares it into `out`. */
async function workplace(files: Record<string, string | Uint8Array> = documents(60)) {
  const folder = await temporaryFolder();
  await mkdir(join(folder, "in"));
  await writeFiles(join(folder, "in"), files);
  const out = join(folder, "out");
  const run = (options: Partial<PrepareOptions> = {}) =>
    prepare({ inputs: [join(folder, "in")], out, tokenizer, ...options });
  return { folder, out, run };
}

/** The documents of a split, read from the files by the published format alone. */
async function documentsOf(out: string, split: "train" | "validation"): Promise<string[]> {
  const { splits } = await verifyDataset(out);
  const found: string[] = [];
  for (const shard of splits[split].shards) {
    const bytes = await readFile(join(out, shard.file));
    const index = await readFile(join(out, shard.file.replace(".bin", ".idx")));
    for (let i = 0; i < shard.documents; i++) {
      const [start, end] = [i, i + 1].map((entry) => Number(index.readBigUInt64LE(entry * 8)));
      const ids = Array.from({ length: (end as number) - (start as number) }, (_, place) =>
        bytes.readUInt16LE(((start as number) + place) * 2),
      );
      expect(ids.pop()).toBe(tokenizer.eosId);
      expect(ids).not.toContain(tokenizer.eosId);
      found.push(tokenizer.decode(ids));
    }
  }
  return found;
}

describe("prepare", () => {
  it("keeps every document, ended by the end-of-text id, in order", async () => {
    const files = { ...documents(60), "9999.txt": "with </s> and \0 and 😀\r\n" };
    const { out, run } = await workplace(files);
    const { dataset, warnings } = await run({ validationFraction: 0.2, shardTokens: 500 });
    expect(warnings).toEqual([]);
    const [train, heldOut] = [
      await documentsOf(out, "train"),
      await documentsOf(out, "validation"),
    ];
    const all = Object.values(files);
    expect(all.filter((text) => train.includes(text))).toEqual(train);
    expect(all.filter((text) => heldOut.includes(text))).toEqual(heldOut);
    expect([...train, ...heldOut].sort()).toEqual([...all].sort());

    const { splits } = dataset;
    expect(splits.train.documents).toBe(train.length);
    expect(splits.train.bytes).toBe(Buffer.byteLength(train.join("")));
    expect(splits.validation.bytes).toBe(Buffer.byteLength(heldOut.join("")));
    expect(splits.train.shards.length).toBeGreaterThan(3);
    for (const shard of splits.train.shards.slice(0, -1)) {
      expect(shard.tokens).toBeGreaterThanOrEqual(500);
      expect(shard.tokens).toBeLessThan(600);
    }
    expect(dataset).toMatchObject({
      dtype: "uint16",
      vocabSize: 4096,
      eosId: 2,
      documentEnd: "eos",
    });
    expect(await readdir(join(out, ".."))).toEqual(["in", "out"]);
    expect((await Tokenizer.load(out)).sha256).toBe(tokenizer.sha256);
  });

  it("gives the same bytes for the same input, and replaces its own data set", async () => {
    const { out, run } = await workplace();
    await run({ shardTokens: 700 });
    const first = await contentsOf(out);
    await run({ shardTokens: 700 });
    expect(await contentsOf(out)).toEqual(first);
    await run({ shardTokens: 100_000 });
    expect(Object.keys(await contentsOf(out)).length).toBeLessThan(Object.keys(first).length);
  });

  it("holds a document out by its own bytes alone", async () => {
    const files = documents(200);
    const one = await workplace(files);
    await one.run({ validationFraction: 0.1 });
    const heldOut = await documentsOf(one.out, "validation");
    expect(heldOut.length).toBeGreaterThan(8);
    expect(heldOut.length).toBeLessThan(35);

    // The files are renamed, and so reordered; half are deleted and others added.
    const entries = Object.values(files)
      .slice(100)
      .map((text, i) => [`x${999 - i}.txt`, text]);
    const two = await workplace({ ...Object.fromEntries(entries), "new.txt": "a new one" });
    await two.run({ validationFraction: 0.1 });
    const later = new Set(await documentsOf(two.out, "validation"));
    for (const text of Object.values(files).slice(100)) {
      expect(later.has(text)).toBe(heldOut.includes(text));
    }
  });

  it("leaves neither side empty when there are two documents, and says so", async () => {
    for (const validationFraction of [1e-9, 0.999999]) {
      const { run } = await workplace(documents(2));
      const { dataset, warnings } = await run({ validationFraction });
      expect(dataset.splits.train.documents).toBe(1);
      expect(dataset.splits.validation.documents).toBe(1);
      expect(warnings.join()).toMatch(/too few documents .*1 of 2 held out/);
    }
  });

  it("trains on a single document, and on copies of one", async () => {
    const cases: Record<string, string>[] = [
      { "a.txt": "alone here" },
      { "a.txt": "same", "b.txt": "same" },
    ];
    for (const files of cases) {
      for (const validationFraction of [0.05, 0.999999]) {
        const { run } = await workplace(files);
        const { dataset, warnings } = await run({ validationFraction });
        expect(dataset.splits.validation.documents).toBe(0);
        expect(dataset.splits.train.documents).toBe(Object.keys(files).length);
        expect(warnings.length).toBe(1);
      }
    }
  });

  it("counts empty files and reports progress up to the whole", async () => {
    const { run } = await workplace({ ...documents(5), "e1.txt": "", "e2.txt": "" });
    const progress: PrepareProgress[] = [];
    const { dataset, warnings } = await run({ onProgress: (now) => progress.push(now) });
    expect(dataset.sources[0]?.skipped?.empty).toBe(2);
    expect(warnings.join()).toMatch(/left out 2 empty/);
    const last = progress.at(-1) as PrepareProgress;
    expect(last.bytes).toBe(last.totalBytes);
    expect(last).toMatchObject({
      documents: 5,
      tokens: dataset.splits.train.tokens + dataset.splits.validation.tokens,
    });
  });

  it("writes uint32 ids for a vocabulary above 65,536", async () => {
    const json = JSON.parse(await readFile(join(fixtures, "byte-level/tokenizer.json"), "utf8"));
    for (let id = 603; id < 65_599; id++) json.model.vocab[`token-${id}`] = id;
    const content = "token-65599-end";
    json.model.vocab[content] = 65_599;
    json.added_tokens.push({ ...json.added_tokens[2], id: 65_599, content });
    const { folder, out, run } = await workplace({
      "a.txt": "x token-65599-end y",
      ...documents(3),
    });
    await writeFile(join(folder, "tokenizer.json"), JSON.stringify(json));
    const { dataset } = await run({ tokenizer: folder, validationFraction: 0 });
    expect(dataset).toMatchObject({ dtype: "uint32", vocabSize: 65_600 });
    const opened = await TokenDataset.open(out, {
      sequenceLength: dataset.splits.train.tokens - 1,
    });
    const ids = new Int32Array(dataset.splits.train.tokens);
    await opened.read(0, ids);
    await opened.close();
    expect(ids).toContain(65_599);
  });
});

describe("prepare refuses", () => {
  it("text that is missing, empty or no UTF-8, and leaves nothing behind", async () => {
    const cases: [Record<string, string | Uint8Array>, RegExp][] = [
      [{ "a.html": "<p>" }, /no text file in it/],
      [{ "a.txt": "", "b.txt": "" }, /no text in .*left out 2 empty/],
      [{ ...documents(3), "z.txt": Buffer.from([0x41, 0xff]) }, /z\.txt: invalid UTF-8 at byte 1/],
    ];
    for (const [files, message] of cases) {
      const { folder, run } = await workplace(files);
      const error = await run().catch((reason: unknown) => reason);
      expect(error).toBeInstanceOf(DataError);
      expect((error as Error).message).toMatch(message);
      expect(await readdir(folder)).toEqual(["in"]);
    }
  });

  it("D5 runs of one token beyond a share", async () => {
    const junk = "<pad>".repeat(2000);
    const { folder, run } = await workplace({
      ...documents(2),
      "junk.txt": " ".repeat(20_000),
      "b.txt": junk,
    });
    await expect(run({ validationFraction: 0 })).rejects.toThrow(
      /\d\d\.\d% of the \d+ tokens of train-00000\.bin stand in runs of 32 or more of one token, most of all \d+ \("/,
    );
    expect(await readdir(folder)).toEqual(["in"]);
    const { dataset } = await run({ validationFraction: 0, maxRunShare: 1 });
    expect(dataset.splits.train.shards[0]?.repeatedTokens).toBeGreaterThan(1000);
  });

  it("a folder with other things in it, unless told to overwrite", async () => {
    const { out, run } = await workplace();
    await writeFiles(out, { "thesis.tex": "precious" });
    const error = await run().catch((reason: unknown) => reason);
    expect(error).toBeInstanceOf(UsageError);
    expect((error as Error).message).toMatch(/not empty and no data set \(it has thesis\.tex\)/);
    expect(await readFile(join(out, "thesis.tex"), "utf8")).toBe("precious");
    await run({ overwrite: true });
    expect(await readdir(out)).not.toContain("thesis.tex");
    // A data set of `prepare` that also holds a user's file is not its own any more.
    await writeFiles(out, { "notes.md": "mine" });
    await expect(run()).rejects.toThrow(/it has notes\.md/);
  });

  it("a folder that holds its input or the working folder, even to overwrite", async () => {
    const { folder, run } = await workplace();
    await expect(run({ out: folder, overwrite: true })).rejects.toThrow(
      /would be replaced, but .*in is in it/,
    );
    await expect(run({ out: process.cwd(), overwrite: true })).rejects.toThrow(UsageError);
    await expect(run({ out: "/", overwrite: true })).rejects.toThrow(UsageError);
  });

  it("an output that is a file, or below one", async () => {
    const { folder, run } = await workplace();
    await writeFiles(folder, { file: "x" });
    await expect(run({ out: join(folder, "file") })).rejects.toThrow(UsageError);
    await expect(run({ out: join(folder, "file/below") })).rejects.toThrow(UsageError);
  });

  it("a second run on the same folder at once", async () => {
    const { run } = await workplace();
    const results = await Promise.allSettled([run(), run(), run()]);
    const failed = results.filter((result) => result.status === "rejected");
    expect(failed.length).toBe(2);
    for (const { reason } of failed as PromiseRejectedResult[]) {
      expect(reason).toBeInstanceOf(UsageError);
      expect((reason as Error).message).toMatch(/in use by process \d+/);
    }
  });

  it.each<[Partial<PrepareOptions>, RegExp]>([
    [{ inputs: [] }, /paths or inputs, at least one .* for inputs/],
    [{ validationFraction: 1 }, /validationFraction/],
    [{ validationFraction: Number.NaN }, /validationFraction/],
    [{ shardTokens: 0 }, /shardTokens/],
    [{ maxRunShare: 2 }, /maxRunShare/],
    [{ invalidUtf8: "ignore" as never }, /invalidUtf8/],
  ])("bad options %j", async (options, message) => {
    const { run } = await workplace();
    const error = await run(options).catch((reason: unknown) => reason);
    expect(error).toBeInstanceOf(ArgumentError);
    expect((error as Error).message).toMatch(message);
  });

  it("to begin when it was stopped before", async () => {
    const { folder, run } = await workplace();
    await expect(run({ signal: AbortSignal.abort(new Error("stop")) })).rejects.toThrow("stop");
    expect(await readdir(folder)).toEqual(["in"]);
  });
});

describe("D6 a killed prepare", () => {
  it("leaves the old data set or none, whenever it is killed, and can be run again", async () => {
    const compiled = await compileLibrary();
    const { folder, out, run } = await workplace(documents(600));
    await run({ out: join(folder, "expected"), shardTokens: 4000 });
    const expected = await contentsOf(join(folder, "expected"));
    const program = `
      const { prepare } = await import(${JSON.stringify(pathToFileURL(join(compiled, "prepare/prepare.js")).href)});
      console.log("started");
      await prepare(${JSON.stringify({ inputs: [join(folder, "in")], out, tokenizer: quickstart, shardTokens: 4000 })});`;
    /** @returns the time it worked, or null if it was killed before its end */
    const round = async (killAfterMs: number): Promise<number | null> => {
      const child = spawn(process.execPath, ["--input-type=module", "-e", program], {
        stdio: ["ignore", "pipe", "inherit"],
      });
      const exit = new Promise<number | null>((resolve) => child.on("exit", resolve));
      const started = await Promise.race([
        new Promise((resolve) => child.stdout.once("data", () => resolve(true))),
        exit.then(() => false),
      ]);
      expect(started, "the program ended before it began").toBe(true);
      const start = performance.now();
      const timer = setTimeout(() => child.kill("SIGKILL"), killAfterMs);
      const code = await exit;
      clearTimeout(timer);
      return code === 0 ? performance.now() - start : null;
    };
    const wholeMs = (await round(60_000)) as number;
    expect(await contentsOf(out)).toEqual(expected);
    let killed = 0;
    let missing = 0;
    for (let part = 1; part <= 9; part++) {
      if (part % 3 === 0) await rm(out, { recursive: true, force: true });
      if ((await round((wholeMs * part) / 10)) === null) killed++;
      if ((await readdir(folder)).includes("out")) {
        expect(await contentsOf(out)).toEqual(expected);
      } else {
        missing++;
      }
    }
    // The kills must have hit running work, with and without an old data set. Else the test shows
    // nothing.
    expect(killed).toBeGreaterThanOrEqual(4);
    expect(missing).toBeGreaterThanOrEqual(1);
    await run({ shardTokens: 4000 });
    expect(await contentsOf(out)).toEqual(expected);
    expect((await readdir(folder)).sort()).toEqual(["expected", "in", "out"]);
  }, 240_000);

  it("leaves no half data set, and the next one takes over and gives the same bytes", async () => {
    const { folder, out, run } = await workplace();
    await run();
    const expected = await contentsOf(out);
    // A killed run leaves its folder and the lock of a dead process.
    const child = spawn(process.execPath, ["-e", ""]);
    await new Promise((resolve) => child.on("exit", resolve));
    const owner = {
      pid: child.pid,
      startTime: "1",
      host: (await import("node:os")).hostname(),
      bootId: "other",
      since: "2026-01-01T00:00:00.000Z",
    };
    await writeFiles(folder, {
      [`out.tmp/${markFile}`]: "",
      "out.tmp/train-00000.bin": "half",
      "out.lock": JSON.stringify(owner),
    });
    expect(await contentsOf(out)).toEqual(expected);
    await run();
    expect(await contentsOf(out)).toEqual(expected);
    expect(await readdir(folder)).toEqual(["in", "out"]);
  });

  it("respects the lock of another machine", async () => {
    const { folder, run } = await workplace();
    const since = "2026-01-01T00:00:00.000Z";
    const owner = { pid: 1, startTime: "1", host: "elsewhere", bootId: "other", since };
    await writeFiles(folder, { "out.lock": JSON.stringify(owner) });
    await expect(run()).rejects.toThrow(/in use by process 1 on elsewhere/);
  });
});

describe("runs of one token", () => {
  it("count from 32 on, across calls, by token", () => {
    const counter = new RunCounter();
    counter.add(Int32Array.from([1, ...new Array(31).fill(5), 2, ...new Array(20).fill(7)]));
    counter.add(Int32Array.from([...new Array(12).fill(7), ...new Array(40).fill(9), 1]));
    counter.finish();
    expect(counter.repeated).toBe(32 + 40);
    expect(counter.worst()).toBe(9);
  });
});
