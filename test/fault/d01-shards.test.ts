// docs/faults.md, rows D1 and D2. A damaged data set ends with exit code 3 and the file's name,
// before the first step. An id outside the vocabulary does so when its window is read, before a
// device sees it.
import {
  appendFile,
  open,
  readFile,
  rename,
  rm,
  symlink,
  truncate,
  writeFile,
} from "node:fs/promises";
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { ArgumentError, DataError } from "../../lib/core/errors.js";
import { TokenDataset } from "../../lib/data/shards.js";
import { prepare } from "../../lib/prepare/prepare.js";
import {
  documents,
  quickstart,
  temporaryFolder,
  threeShards,
  writeFiles,
} from "../data/support.js";

const dataset = threeShards();

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

/** Row D1: the damage, its code, and the expected message. */
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
      json.version = 4;
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

describe("D1 refused before the first step", () => {
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
    await prepare({
      inputs: [join(folder, "in")],
      out,
      tokenizer: quickstart,
      validationFraction: 0,
    });
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

it("D1 a sparse shard of 5 GB, beyond 2^31 tokens, is opened in no time and read to its end", async () => {
  const folder = await dataset();
  const tokens = 2 ** 31 + 2 ** 29;
  await truncate(shard(folder), tokens * 2);
  const end = await open(shard(folder), "r+");
  await end.write(Uint8Array.of(7, 0), 0, 2, tokens * 2 - 2);
  await end.close();
  const index = await open(join(folder, "train-00001.idx"), "r+");
  const { size } = await index.stat();
  const last = Buffer.alloc(8);
  last.writeBigUInt64LE(BigInt(tokens));
  await index.write(last, 0, 8, size - 8);
  await index.close();
  await edit((json) => {
    const { train } = json.splits;
    train.tokens += tokens - train.shards[1].tokens;
    train.shards[1].tokens = tokens;
  })(folder);
  const before = process.memoryUsage.rss();
  const opened = await TokenDataset.open(folder, { sequenceLength: 1 });
  expect(opened.tokens).toBeGreaterThan(2 ** 31);
  const { shards } = JSON.parse(await readFile(join(folder, "dataset.json"), "utf8")).splits.train;
  // This window holds the last two tokens of the large shard.
  const into = new Int32Array(2);
  await opened.read(shards[0].tokens + tokens - 2, into);
  expect([...into]).toEqual([0, 7]);
  await opened.close();
  expect(process.memoryUsage.rss() - before).toBeLessThan(64 << 20);
});

it("D2 ids outside the vocabulary are named with file and offset", async () => {
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
