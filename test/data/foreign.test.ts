import { appendFile, mkdir, readFile, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { DataError } from "../../lib/core/errors.js";
import { Mixture } from "../../lib/data/mixture.js";
import { TokenDataset } from "../../lib/data/shards.js";
import { prepare } from "../../lib/prepare/prepare.js";
import { documents, quickstart, temporaryFolder, writeFiles } from "./support.js";

/** A chunk in the format of lit_gpt/packed_dataset.py. */
function litgpt(
  ids: ArrayLike<number>,
  { magic = "LITPKDS", version = 1, code = 8, chunk = ids.length } = {},
): Buffer {
  const header = Buffer.alloc(24);
  header.write(magic, "latin1");
  header.writeBigUInt64LE(BigInt(version), 7);
  header[15] = code;
  header.writeBigUInt64LE(BigInt(chunk), 16);
  const data = code === 8 ? Uint16Array.from(ids) : Int32Array.from(ids);
  return Buffer.concat([header, Buffer.from(data.buffer)]);
}

/** A file in the format of write_datafile in llm.c's data_common.py. */
function llmc(
  ids: ArrayLike<number>,
  { magic = 20240520, version = 1, count = ids.length } = {},
): Buffer {
  const header = new Int32Array(256);
  header.set([magic, version, count]);
  const data = magic === 20240801 ? Uint32Array.from(ids) : Uint16Array.from(ids);
  return Buffer.concat([Buffer.from(header.buffer), Buffer.from(data.buffer)]);
}

const ids = (count: number, seed = 1) =>
  Array.from({ length: count }, (_, i) => 3 + (((i * 2654435761 + seed * 97) >>> 0) % 4000));
const read = async (file: string, split: "train" | "validation" = "train") => {
  const probe = await TokenDataset.open(file, { sequenceLength: 1, split });
  const opened = await TokenDataset.open(file, { sequenceLength: probe.tokens - 1, split });
  const into = new Int32Array(probe.tokens);
  await opened.read(0, into);
  await opened.close();
  await probe.close();
  return [...into];
};
const describeFiles = (folder: string, lines: string[]) =>
  writeFile(join(folder, "source.yaml"), `${lines.join("\n")}\n`).then(() =>
    join(folder, "source.yaml"),
  );
const vocabulary = `tokenizer: ${quickstart}`;

describe("foreign token files", () => {
  it("reads TinyLlama's packed files where they are, in the order of their names", async () => {
    const folder = await temporaryFolder();
    await mkdir(join(folder, "packed"));
    const parts = [0, 1, 2].map((part) => ids(500, part));
    for (const [part, list] of parts.entries()) {
      await writeFile(join(folder, `packed/train_slim_${part}_0000000000.bin`), litgpt(list));
    }
    await writeFile(
      join(folder, "packed/validation_0.bin"),
      litgpt(ids(100, 9), { code: 8, chunk: 50 }),
    );
    const file = await describeFiles(folder, [
      "format: litgpt",
      "train: packed/train_slim*.bin",
      "validation: packed/validation*.bin",
      vocabulary,
    ]);
    expect(await read(file)).toEqual(parts.flat());
    expect(await read(file, "validation")).toEqual(ids(100, 9));
  });

  it("reads int32 chunks, nanoGPT's and llm.c's files", async () => {
    const folder = await temporaryFolder();
    await writeFile(join(folder, "a.bin"), litgpt(ids(300), { code: 4 }));
    await writeFile(join(folder, "b.bin"), Buffer.from(Uint16Array.from(ids(301)).buffer));
    await writeFile(join(folder, "c.bin"), llmc(ids(302)));
    await writeFile(join(folder, "d.bin"), llmc(ids(303), { magic: 20240801, version: 7 }));
    for (const [format, name, count] of [
      ["litgpt", "a.bin", 300],
      ["nanogpt", "b.bin", 301],
      ["llmc", "c.bin", 302],
      ["llmc", "d.bin", 303],
    ] as const) {
      const file = await describeFiles(folder, [
        `format: ${format}`,
        `train: ${name}`,
        "vocabSize: 4096",
        "eosId: 2",
      ]);
      expect(await read(file)).toEqual(ids(count));
    }
  });

  it("is mixed with prepared data of the same tokenizer, and says where its documents start", async () => {
    const folder = await temporaryFolder();
    await writeFiles(join(folder, "in"), documents(40));
    const out = join(folder, "out");
    await prepare({ inputs: [join(folder, "in")], out, tokenizer: quickstart });
    const list = ids(600).map((id, index) => (index % 50 === 0 ? 2 : id));
    await writeFile(join(folder, "x.bin"), llmc(list));
    const file = await describeFiles(folder, ["format: llmc", "train: [x.bin]", vocabulary]);
    const mixture = await Mixture.open(
      { [out]: 1, [file]: 1 },
      { sequenceLength: 20, maskDocuments: true },
    );
    const foreign = mixture.sources.findIndex(({ folder: name }) => name === file);
    expect(mixture.sources[foreign]?.dataset.marks).toEqual({ startId: 2, endId: null });
    expect(mixture.bytesPerToken).toBe(0);
    const loader = mixture.loader(1, 0);
    let seen = 0;
    for (let position = 0; position < 40; position++) {
      const { inputs, firstKey } = await loader.next();
      const { source } = mixture.locate(position);
      if (source !== foreign) continue;
      const at = inputs.indexOf(2);
      expect(firstKey?.at(-1)).toBe(at < 0 ? 0 : at);
      seen += at > 0 ? 1 : 0;
    }
    expect(seen).toBeGreaterThan(2);
    await loader.close();
    await mixture.close();
    const other = await describeFiles(folder, [
      "format: llmc",
      "train: x.bin",
      "vocabSize: 4096",
      "eosId: 2",
    ]);
    await expect(Mixture.open({ [out]: 1, [other]: 1 }, { sequenceLength: 20 })).rejects.toThrow(
      /different tokenizers/,
    );
  });

  it("knows how much is padding, and names changed files by another fingerprint", async () => {
    const folder = await temporaryFolder();
    const padded = [...ids(3000), ...new Array(1000).fill(1)];
    await writeFile(join(folder, "a.bin"), litgpt(padded));
    const file = await describeFiles(folder, ["format: litgpt", "train: a.bin", vocabulary]);
    const open = () => TokenDataset.open(file, { sequenceLength: 10 });
    const { repeatedShare, fingerprint } = await open();
    expect(repeatedShare).toBeCloseTo(0.25, 2);
    expect((await open()).fingerprint).toBe(fingerprint);
    padded[10] = 77;
    await writeFile(join(folder, "a.bin"), litgpt(padded));
    expect((await open()).fingerprint).not.toBe(fingerprint);
  });

  const faults: [string, string, (path: string) => Promise<unknown>, RegExp][] = [
    [
      "another magic",
      "litgpt",
      (p) => writeFile(p, litgpt(ids(9), { magic: "LITPKDX" })),
      /a\.bin: expected a file that begins with LITPKDS/,
    ],
    [
      "another version",
      "litgpt",
      (p) => writeFile(p, litgpt(ids(9), { version: 2 })),
      /expected version 1 of the format, got 2/,
    ],
    [
      "another dtype",
      "litgpt",
      (p) => writeFile(p, litgpt(ids(9), { code: 6 })),
      /type uint16 or int32, got float32/,
    ],
    [
      "an unknown dtype",
      "litgpt",
      (p) => writeFile(p, litgpt(ids(9), { code: 99 })),
      /got code 99/,
    ],
    [
      "an absurd chunk",
      "litgpt",
      (p) => writeFile(p, litgpt(ids(9), { chunk: 2 ** 50 })),
      /a chunk of 1125899906842624 tokens/,
    ],
    [
      "a chunk cut short",
      "litgpt",
      (p) => writeFile(p, litgpt(ids(9), { chunk: 10 })),
      /no whole number of its chunks of 10/,
    ],
    [
      "a header cut short",
      "litgpt",
      (p) => truncate(p, 20),
      /20 bytes are too few for the header of 24/,
    ],
    ["a header alone", "litgpt", (p) => truncate(p, 24), /holds no tokens/],
    ["odd bytes", "litgpt", (p) => appendFile(p, "x"), /no whole number of uint16 ids/],
    ["an empty file", "nanogpt", (p) => truncate(p, 0), /holds no tokens/],
    [
      "another magic",
      "llmc",
      (p) => writeFile(p, llmc(ids(9), { magic: 20240522 })),
      /20240520 or 20240801, got 20240522/,
    ],
    [
      "another version",
      "llmc",
      (p) => writeFile(p, llmc(ids(9), { version: 3 })),
      /expected version 1, got 3/,
    ],
    [
      "another count",
      "llmc",
      (p) => writeFile(p, llmc(ids(9), { count: 8 })),
      /has 9 tokens, but its header says 8/,
    ],
    [
      "an id outside the vocabulary",
      "nanogpt",
      (p) => writeFile(p, Uint16Array.of(1, 2, 5000, 3)),
      /a\.bin: token 2 \(byte 4\) is 5000/,
    ],
  ];
  it.each(faults)("refuses %s of %s", async (_, format, damage, message) => {
    const folder = await temporaryFolder();
    const path = join(folder, "a.bin");
    await writeFile(path, litgpt(ids(100)));
    await damage(path);
    const file = await describeFiles(folder, [`format: ${format}`, "train: a.bin", vocabulary]);
    const error = await TokenDataset.open(file, { sequenceLength: 2 }).catch(
      (reason: unknown) => reason,
    );
    expect(error).toBeInstanceOf(DataError);
    expect((error as Error).message).toMatch(message);
  });

  it.each<[string[], RegExp]>([
    [["format: megatron", "train: a.bin", vocabulary], /format: /],
    [["format: litgpt", vocabulary], /train: /],
    [["format: litgpt", "train: a.bin"], /expected tokenizer, or vocabSize/],
    [["format: litgpt", "train: a.bin", "vocabSize: 5", "eosId: 5"], /eosId below it/],
    [["format: litgpt", "train: b*.bin", vocabulary], /b\*\.bin: matches no file/],
    [["format: litgpt", "train: b.bin", vocabulary], /cannot read .*b\.bin/],
    [["format: litgpt", "train: a.bin", vocabulary, "colour: 1"], /colour/],
    [["format: ["], /source\.yaml/],
  ])("refuses the description %j", async (lines, message) => {
    const folder = await temporaryFolder();
    await writeFile(join(folder, "a.bin"), litgpt(ids(100)));
    const error = await TokenDataset.open(await describeFiles(folder, lines), {
      sequenceLength: 2,
    }).catch((reason: unknown) => reason);
    expect(error).toBeInstanceOf(DataError);
    expect((error as Error).message).toMatch(message);
    expect(await readFile(join(folder, "a.bin"))).toEqual(litgpt(ids(100)));
  });
});
