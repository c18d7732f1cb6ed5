import {
  appendFile,
  cp,
  mkdtemp,
  readFile,
  rename,
  rm,
  symlink,
  truncate,
  writeFile,
} from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { beforeAll, describe, expect, it } from "vitest";
import { prepare } from "../../lib/data/prepare.js";
import { TokenDataset, verifyDataset } from "../../lib/data/shards.js";
import { Tokenizer } from "../../lib/data/tokenizer.js";
import { splitWindows } from "../../lib/data/windows.js";
import { ArgumentError, DataError } from "../../lib/errors.js";
import { documents, quickstart, temporaryFolder, writeFiles } from "./support.js";

let tokenizer: Tokenizer;
let prepared: string;
beforeAll(async () => {
  tokenizer = await Tokenizer.load(quickstart);
  const folder = await mkdtemp(join(tmpdir(), "llamaforge-shards-"));
  await writeFiles(join(folder, "in"), documents(30));
  prepared = join(folder, "out");
  await prepare({ inputs: [join(folder, "in")], out: prepared, tokenizer, shardTokens: 600 });
  return () => rm(folder, { recursive: true });
});

/** A data set of three small shards, to damage. */
async function dataset(): Promise<string> {
  const folder = join(await temporaryFolder(), "out");
  await cp(prepared, folder, { recursive: true });
  return folder;
}

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
      tokenizer,
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

/** Changes dataset.json. */
const edit =
  // biome-ignore lint/suspicious/noExplicitAny: the table below breaks every part of it
  (change: (json: any) => void) => async (folder: string) => {
    const file = join(folder, "dataset.json");
    const json = JSON.parse(await readFile(file, "utf8"));
    change(json);
    await writeFile(file, JSON.stringify(json));
  };
const shard = (folder: string): string => join(folder, "train-00001.bin");

/** Row D1: what is wrong, how, and what the message must say. */
const faults: [string, (folder: string) => Promise<unknown>, RegExp][] = [
  [
    "no dataset.json",
    (f) => rm(join(f, "dataset.json")),
    /cannot read .*dataset\.json.*llamaforge prepare/,
  ],
  [
    "dataset.json that is no JSON",
    (f) => truncate(join(f, "dataset.json"), 100),
    /dataset\.json: not JSON/,
  ],
  [
    "another format",
    edit((json) => {
      json.format = "LITPKDS";
    }),
    /format: .*llamaforge-tokens/,
  ],
  [
    "a later version",
    edit((json) => {
      json.version = 2;
    }),
    /version: /,
  ],
  [
    "another dtype",
    edit((json) => {
      json.dtype = "int64";
    }),
    /dtype: /,
  ],
  [
    "a dtype too small",
    edit((json) => {
      json.vocabSize = 70_000;
    }),
    /dtype: uint16 cannot hold 70000 ids/,
  ],
  [
    "a dtype that does not fit the files",
    edit((json) => {
      json.dtype = "uint32";
    }),
    /train-00000\.bin has .* (tokens, but|no whole number)/,
  ],
  [
    "an unknown field",
    edit((json) => {
      json.surprise = 1;
    }),
    /surprise/,
  ],
  [
    "a path for a shard",
    edit((json) => {
      json.splits.train.shards[0].file = "../../etc/passwd";
    }),
    /splits\.train\.shards\.0\.file: /,
  ],
  [
    "shards out of order",
    edit((json) => {
      json.splits.train.shards.reverse();
    }),
    /splits\.train\.shards\.0\.file: expected train-00000\.bin/,
  ],
  [
    "a removed shard entry",
    edit((json) => {
      json.splits.train.shards.pop();
    }),
    /splits\.train\.tokens: \d+, but its shards add up to/,
  ],
  [
    "a fractional count",
    edit((json) => {
      json.splits.train.tokens = 1.5;
    }),
    /splits\.train\.tokens: /,
  ],
  [
    "a count beyond 2^53",
    edit((json) => {
      json.splits.train.tokens = 2 ** 60;
    }),
    /splits\.train\.tokens: /,
  ],
  [
    "a hash that is none",
    edit((json) => {
      json.splits.train.shards[0].sha256 = "abc";
    }),
    /SHA-256 in hexadecimal/,
  ],
  [
    "no training tokens",
    edit((json) => {
      json.splits.train = { tokens: 0, documents: 0, bytes: 0, shards: [] };
    }),
    /no tokens for training/,
  ],
  ["a missing shard", (f) => rm(shard(f)), /cannot read .*train-00001\.bin/],
  [
    "an empty shard",
    (f) => truncate(shard(f), 0),
    /train-00001\.bin has 0 tokens, but dataset\.json says \d+/,
  ],
  [
    "a shard of odd bytes",
    (f) => appendFile(shard(f), "x"),
    /train-00001\.bin has \d+ bytes: no whole number of uint16 ids/,
  ],
  [
    "a shortened shard",
    (f) => truncate(shard(f), 100),
    /train-00001\.bin has 50 tokens, but dataset\.json says \d+/,
  ],
  [
    "a lengthened shard",
    (f) => appendFile(shard(f), "xxxx"),
    /train-00001\.bin has \d+ tokens, but/,
  ],
  [
    "a shard said to be empty",
    async (f) => {
      await truncate(shard(f), 0);
      await edit((json) => {
        const { train } = json.splits;
        const [entry] = [train.shards[1]];
        for (const field of ["tokens", "documents", "bytes"]) {
          train[field] -= entry[field];
          entry[field] = 0;
        }
      })(f);
    },
    /train-00001\.bin holds no tokens/,
  ],
  [
    "a symbolic link for a shard",
    async (f) => {
      await rename(shard(f), join(f, "elsewhere"));
      await symlink(join(f, "elsewhere"), shard(f));
    },
    /train-00001\.bin is no regular file/,
  ],
  ["a missing index", (f) => rm(join(f, "train-00001.idx")), /cannot read .*train-00001\.idx/],
  [
    "a shortened index",
    (f) => truncate(join(f, "train-00001.idx"), 16),
    /train-00001\.idx has 16 bytes, but \d+ documents need/,
  ],
  [
    "an index with another end",
    async (f) => {
      const file = join(f, "train-00001.idx");
      const bytes = await readFile(file);
      bytes.writeBigUInt64LE(2n ** 63n, bytes.length - 8);
      await writeFile(file, bytes);
    },
    /train-00001\.idx ends at token 9223372036854775808/,
  ],
];

describe("D1 damaged shards are refused before the first step", () => {
  it.each(faults)("%s", async (_, damage, message) => {
    const folder = await dataset();
    await damage(folder);
    const error = await TokenDataset.open(folder, { sequenceLength: 16 }).catch(
      (reason: unknown) => reason,
    );
    expect(error).toBeInstanceOf(DataError);
    expect((error as DataError).message).toMatch(message);
    expect((error as DataError).exitCode).toBe(3);
  });

  it("text shorter than one window", async () => {
    const folder = await dataset();
    const { tokens } = await TokenDataset.open(folder, { sequenceLength: 1 });
    await TokenDataset.open(folder, { sequenceLength: tokens - 1 });
    await expect(TokenDataset.open(folder, { sequenceLength: tokens })).rejects.toThrow(
      new RegExp(
        `has ${tokens} train tokens, but one window of sequenceLength ${tokens} needs ${tokens + 1}`,
      ),
    );
  });

  it("a split that is not there", async () => {
    const folder = await temporaryFolder();
    await writeFiles(join(folder, "in"), documents(3));
    const out = join(folder, "out");
    await prepare({ inputs: [join(folder, "in")], out, tokenizer, validationFraction: 0 });
    await expect(
      TokenDataset.open(out, { sequenceLength: 4, split: "validation" }),
    ).rejects.toThrow(/holds no validation documents/);
  });

  it("bad options", async () => {
    const folder = await dataset();
    for (const sequenceLength of [0, -1, 1.5, Number.NaN]) {
      await expect(TokenDataset.open(folder, { sequenceLength })).rejects.toThrow(ArgumentError);
    }
    await expect(
      TokenDataset.open(folder, { sequenceLength: 4, split: "test" as never }),
    ).rejects.toThrow(ArgumentError);
  });

  it("never anything but a DataError for a dataset.json with any one value replaced", async () => {
    const folder = await dataset();
    const text = await readFile(join(folder, "dataset.json"), "utf8");
    const paths: (string | number)[][] = [];
    const walk = (value: unknown, path: (string | number)[]): void => {
      if (path.length > 0) paths.push(path);
      if (typeof value !== "object" || value === null) return;
      for (const [key, inner] of Object.entries(value)) walk(inner, [...path, key]);
    };
    walk(JSON.parse(text), []);
    const junk = fc.oneof(
      fc.jsonValue(),
      fc.constantFrom(-1, Number.MAX_VALUE, 2 ** 53, "../x", null, 1e-9),
    );
    await fc.assert(
      fc.asyncProperty(fc.constantFrom(...paths), junk, async (path, value) => {
        const json = JSON.parse(text);
        let target = json;
        for (const key of path.slice(0, -1)) target = target[key];
        target[path.at(-1) as string] = value;
        await writeFile(join(folder, "dataset.json"), JSON.stringify(json));
        const error = await TokenDataset.open(folder, { sequenceLength: 16 }).catch(
          (reason: unknown) => reason,
        );
        if (!(error instanceof TokenDataset)) expect(error).toBeInstanceOf(DataError);
      }),
      { numRuns: 150 },
    );
  });
});

describe("damaged tokens", () => {
  it("D2 outside the vocabulary are named with file and offset", async () => {
    const folder = await dataset();
    const bytes = await readFile(shard(folder));
    bytes.writeUInt16LE(4096, 10 * 2);
    await writeFile(shard(folder), bytes);
    const opened = await TokenDataset.open(folder, { sequenceLength: 16 });
    const read = async (): Promise<void> => {
      for (let window = 0; window < opened.windows; window++)
        await opened.read(window, new Int32Array(17));
    };
    await expect(read()).rejects.toThrow(
      /train-00001\.bin: token 10 \(byte 20\) is 4096, outside the vocabulary of 4096/,
    );
    await opened.close();
  });

  it("that vanish while the file is open are an error, no crash (F3)", async () => {
    const folder = await dataset();
    const opened = await TokenDataset.open(folder, { sequenceLength: 16 });
    await opened.read(0, new Int32Array(17));
    await truncate(join(folder, "train-00000.bin"), 20);
    await expect(opened.read(0, new Int32Array(17))).rejects.toThrow(
      /train-00000\.bin ends at byte 20: it was cut short/,
    );
    await opened.close();
  });

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
