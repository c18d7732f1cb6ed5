// docs/faults.md, row D6: a stopped or killed preparation continues, with the bytes of one clean
// run, for any number of workers. `npm run soak:data` is the storm of kills at full size.
import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { appendFile, readdir, utimes } from "node:fs/promises";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { gzipSync } from "node:zlib";
import { describe, expect, it } from "vitest";
import { type PrepareOptions, prepare } from "../../lib/prepare/prepare.js";
import {
  compileLibrary,
  contentsOf,
  quickstart,
  temporaryFolder,
  writeFiles,
} from "../data/support.js";

/** `count` records of about 600 bytes. Every 40th is a copy of an earlier one. */
function records(count: number, seed: number): string {
  const words = "liberty people state peace union law great nation address congress".split(" ");
  return Array.from({ length: count }, (_, i) => {
    const id = i % 40 === 39 ? i - 7 : i;
    const text = Array.from(
      { length: 75 },
      (_, w) => words[(id * 31 + w * (seed + 3) + (w >> 2)) % 10],
    );
    return JSON.stringify({ text: `${seed} ${id}: ${text.join(" ")}.` });
  }).join("\n");
}

/**
 * Input of at least five batches: plain and gzip records, small files, a text longer than a batch.
 */
async function workplace() {
  const folder = await temporaryFolder();
  await writeFiles(folder, {
    "a.jsonl": records(2600, 1),
    "b.jsonl.gz": gzipSync(records(2600, 2)),
    "texts/1.txt": "one",
    "texts/2.txt": "two",
    "long.txt": `${"A long text without an end. ".repeat(25)}\n`.repeat(2200),
  });
  const options = (out: string): PrepareOptions => ({
    inputs: ["a.jsonl", "b.jsonl.gz", "texts", "long.txt"].map((name) => join(folder, name)),
    out: join(folder, out),
    tokenizer: quickstart,
    shardTokens: 60_000,
    deduplicate: true,
    validationFraction: 0.1,
  });
  return { folder, options };
}

describe("D6 a preparation that does not end", () => {
  it("goes on after every stop, to the same bytes, and begins again when anything has changed", async () => {
    const { folder, options } = await workplace();
    const clean = await prepare(options("clean"));
    expect(clean.dataset.sources[0]?.skipped?.duplicate).toBe(65);
    expect(clean.dataset.splits.train.shards.length).toBeGreaterThan(4);
    const expected = await contentsOf(join(folder, "clean"));

    let stops = 0;
    let taken = 0;
    // A stop within a document longer than a batch returns to the document's start. The next try
    // stops later.
    let patience = 0;
    const run = async (extra: Partial<PrepareOptions> = {}) => {
      const stop = new AbortController();
      let batches = 0;
      return await prepare({
        ...options("stopped"),
        ...extra,
        signal: stop.signal,
        onProgress: ({ resumedDocuments }) => {
          expect(resumedDocuments).toBeGreaterThanOrEqual(taken);
          if (batches === 0) patience = resumedDocuments > taken ? 1 : patience + 1;
          taken = resumedDocuments;
          if (++batches >= patience) stop.abort(new Error("stop"));
        },
      });
    };
    for (;;) {
      const result = await run().catch((error: Error) => error);
      if (!(result instanceof Error)) {
        expect(result.resumedDocuments).toBeGreaterThanOrEqual(taken);
        break;
      }
      expect(result.message).toBe("stop");
      expect(existsSync(join(folder, "stopped"))).toBe(false);
      expect(++stops).toBeLessThan(50);
    }
    expect(stops).toBeGreaterThan(4);
    expect(taken).toBeGreaterThan(5000);
    expect(await contentsOf(join(folder, "stopped"))).toEqual(expected);
    expect((await readdir(folder)).filter((name) => name.includes("stopped"))).toEqual(["stopped"]);

    // Another option or a changed input means different work. It begins only on request.
    taken = 0;
    await expect(run()).rejects.toThrow("stop");
    const startOver = true;
    const other = await prepare({ ...options("stopped"), shardTokens: 50_000, startOver });
    expect(other.resumedDocuments).toBe(0);
    await expect(run()).rejects.toThrow("stop");
    await appendFile(join(folder, "a.jsonl"), '\n{"text": "added"}');
    await utimes(join(folder, "a.jsonl"), 1, 1);
    const added = await prepare({ ...options("stopped"), startOver });
    expect(added.resumedDocuments).toBe(0);
    expect(added.dataset.sources[0]?.documents).toBe(2536);
  });

  it("gives the same bytes with any number of workers, and after SIGKILLs between its notes", async () => {
    const compiled = await compileLibrary();
    const { folder, options } = await workplace();
    await prepare(options("clean"));
    const expected = await contentsOf(join(folder, "clean"));
    const program = `
      const { prepare } = await import(${JSON.stringify(pathToFileURL(join(compiled, "prepare/prepare.js")).href)});
      const options = JSON.parse(process.argv[1]);
      const result = await prepare({ ...options, onProgress: () => process.stdout.write("batch\\n") });
      process.stdout.write("resumed " + result.resumedDocuments + "\\n");`;
    /** @returns the last line of its output, or null if it was killed at its n-th batch */
    const run = async (out: string, workers: number, killAt: number): Promise<string | null> => {
      const child = spawn(
        process.execPath,
        ["--input-type=module", "-e", program, JSON.stringify({ ...options(out), workers })],
        { stdio: ["ignore", "pipe", "inherit"] },
      );
      let text = "";
      child.stdout.on("data", (data) => {
        text += data;
        if (text.split("batch").length > killAt) child.kill("SIGKILL");
      });
      const [code, signal] = await new Promise<[number | null, string | null]>((resolve) =>
        child.on("close", (...end) => resolve(end)),
      );
      if (signal === "SIGKILL") return null;
      expect(code).toBe(0);
      return text.trim().split("\n").at(-1) as string;
    };
    expect(await run("three", 3, Number.POSITIVE_INFINITY)).toBe("resumed 0");
    expect(await contentsOf(join(folder, "three"))).toEqual(expected);
    let kills = 0;
    for (const workers of [2, 1, 2]) if ((await run("killed", workers, 2)) === null) kills++;
    expect(kills).toBe(3);
    const last = await run("killed", 1, Number.POSITIVE_INFINITY);
    expect(Number(last?.split(" ")[1])).toBeGreaterThan(1000);
    expect(await contentsOf(join(folder, "killed"))).toEqual(expected);
  }, 240_000);
});
