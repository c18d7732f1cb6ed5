import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { ArgumentError } from "../../lib/core/errors.js";
import { TokenDataset } from "../../lib/data/shards.js";
import { verifyDataset } from "../../lib/data/verify.js";
import { splitWindows } from "../../lib/data/windows.js";
import { prepare } from "../../lib/prepare/prepare.js";
import { documents, quickstart, temporaryFolder, threeShards, writeFiles } from "./support.js";

const dataset = threeShards();

async function allTokens(folder: string): Promise<number[]> {
  const { splits } = await verifyDataset(folder);
  const tokens: number[] = [];
  for (const { file } of splits.train.shards) {
    const bytes = await readFile(join(folder, file));
    for (let at = 0; at < bytes.length; at += 2) tokens.push(bytes.readUInt16LE(at));
  }
  return tokens;
}

describe("token shards as windows", () => {
  it("reads T+1 tokens at stride T across documents and shards, every target once", async () => {
    const folder = await dataset();
    const tokens = await allTokens(folder);
    for (const sequenceLength of [1, 7, 100, 333, 1000, tokens.length - 1]) {
      const opened = await TokenDataset.open(folder, { sequenceLength });
      expect(opened.windows).toBe(Math.floor((tokens.length - 1) / sequenceLength));
      const into = new Int32Array(sequenceLength + 1);
      for (let window = 0; window < opened.windows; window += sequenceLength < 10 ? 17 : 1) {
        await opened.read(window, into);
        const start = window * sequenceLength;
        expect([...into]).toEqual(tokens.slice(start, start + sequenceLength + 1));
      }
      await opened.close();
    }
  });

  it("reads many windows at once, and again after close", async () => {
    const opened = await TokenDataset.open(await dataset(), { sequenceLength: 50 });
    const read = async (): Promise<string> => {
      const rows = Array.from({ length: opened.windows }, () => new Int32Array(51));
      await Promise.all(rows.map((row, window) => opened.read(window, row)));
      return rows.join();
    };
    const first = await read();
    await opened.close();
    expect(await read()).toBe(first);
    await opened.close();
  });

  it("keeps few files open however many shards there are", async () => {
    const folder = await temporaryFolder();
    await writeFiles(join(folder, "in"), documents(120, 10));
    const out = join(folder, "out");
    await prepare({
      inputs: [join(folder, "in")],
      out,
      tokenizer: quickstart,
      shardTokens: 1,
      validationFraction: 0,
    });
    const opened = await TokenDataset.open(out, { sequenceLength: 8 });
    const into = (): Int32Array => new Int32Array(9);
    await Promise.all(
      Array.from({ length: opened.windows }, (_, window) => opened.read(window, into())),
    );
    for (let window = 0; window < opened.windows; window++) await opened.read(window, into());
    const { readdir, readlink } = await import("node:fs/promises");
    const descriptors = await readdir("/proc/self/fd");
    const targets = await Promise.all(
      descriptors.map((fd) => readlink(`/proc/self/fd/${fd}`).catch(() => "")),
    );
    const count = targets.filter((target) => target.startsWith(out)).length;
    expect(count).toBeGreaterThan(0);
    expect(count).toBeLessThanOrEqual(64);
    await opened.close();
  });

  it("names its tokens by a fingerprint that follows their content, not their place", async () => {
    const [one, two] = [await dataset(), await dataset()];
    const open = async (folder: string, split?: "validation") => {
      const { fingerprint } = await TokenDataset.open(folder, {
        sequenceLength: 5,
        ...(split && { split }),
      });
      return fingerprint;
    };
    expect(await open(one)).toBe(await open(two));
    expect(await open(one)).not.toBe(await open(one, "validation"));
  });

  it("splits windows into inputs and targets", () => {
    const windows = Int32Array.from([1, 2, 3, 4, 5, 6, 7, 8]);
    expect(splitWindows(windows, 2, 3)).toEqual({
      inputs: Int32Array.from([1, 2, 3, 5, 6, 7]),
      targets: Int32Array.from([2, 3, 4, 6, 7, 8]),
    });
    expect(() => splitWindows(windows, 2, 4)).toThrow(ArgumentError);
  });

  it("refuses windows that are not there", async () => {
    const opened = await TokenDataset.open(await dataset(), { sequenceLength: 50 });
    for (const window of [-1, opened.windows, 0.5, Number.NaN]) {
      await expect(opened.read(window, new Int32Array(51))).rejects.toThrow(ArgumentError);
    }
    await expect(opened.read(0, new Int32Array(50))).rejects.toThrow(/room for 51 ids, got 50/);
  });
});

describe("damaged tokens", () => {
  it("are found by verifyDataset, in shards, indices and tokenizer", async () => {
    for (const name of [
      "train-00000.bin",
      "train-00001.idx",
      "validation-00000.bin",
      "tokenizer.json",
    ]) {
      const folder = await dataset();
      await verifyDataset(folder);
      const bytes = await readFile(join(folder, name));
      const at = Math.floor(bytes.length / 2);
      bytes[at] = (bytes[at] as number) ^ 1;
      await writeFile(join(folder, name), bytes);
      await expect(verifyDataset(folder)).rejects.toThrow(new RegExp(name));
    }
  });
});
