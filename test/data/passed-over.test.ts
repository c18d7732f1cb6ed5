// Files in an input folder that are not read are named and counted. An unreadable file is an error.
import { execFileSync } from "node:child_process";
import { link, mkdir, readdir, symlink } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { ArgumentError, DataError } from "../../lib/core/errors.js";
import { TokenDataset } from "../../lib/data/shards.js";
import { prepare } from "../../lib/prepare/prepare.js";
import { findInput, type Input } from "../../lib/prepare/readers/index.js";
import { documents, quickstart, temporaryFolder, writeFiles } from "./support.js";

const record = (text: string) => `${JSON.stringify({ text })}\n`;

/**
 * A folder of 20 documents, a loop, a FIFO and a link to nothing, each with a name that would be
 * read.
 */
async function damaged(): Promise<string> {
  const folder = await writeFiles(join(await temporaryFolder(), "in"), documents(20));
  await symlink("gone.txt", join(folder, "dangling.txt"));
  await symlink("loop.txt", join(folder, "loop.txt"));
  execFileSync("mkfifo", [join(folder, "fifo.txt")]);
  return folder;
}

async function preparation(inputs: (string | Input)[], options = {}) {
  const out = join(await temporaryFolder(), "out");
  return await prepare({ inputs, out, tokenizer: quickstart, ...options });
}

const refusal = async (work: Promise<unknown>): Promise<Error> => {
  const error = await work.then(
    () => new Error("was not refused"),
    (reason: Error) => reason,
  );
  expect(error).toBeInstanceOf(DataError);
  return error;
};

describe("what cannot be read", () => {
  it("is an error that names all of it, before anything is written", async () => {
    const folder = await damaged();
    const place = await temporaryFolder();
    const out = join(place, "out");
    const error = await refusal(prepare({ inputs: [folder], out, tokenizer: quickstart }));
    for (const name of ["dangling.txt", "loop.txt", "fifo.txt"]) {
      expect(error.message).toContain(join(folder, name));
    }
    expect(error.message).toContain("leave such files out: skipUnreadable");
    expect(await readdir(place)).toEqual([]);
  });

  it("is left out if it is to be, told by name and counted", async () => {
    const folder = await damaged();
    const { dataset, passedOver } = await preparation([folder], { skipUnreadable: true });
    expect(dataset.sources[0]).toMatchObject({
      documents: 20,
      passedOver: { dangling: 1, loop: 1, special: 1 },
    });
    expect(passedOver).toEqual([
      {
        path: folder,
        lines: [
          `1 links to nothing: ${join(folder, "dangling.txt")}`,
          `1 no regular files (FIFO, socket, device): ${join(folder, "fifo.txt")}`,
          `1 links in a circle: ${join(folder, "loop.txt")}`,
        ],
      },
    ]);
  });

  it("is so too where it is named itself, or a pattern matches it; a name without a file always", async () => {
    const folder = await damaged();
    for (const name of ["dangling.txt", "loop.txt", "fifo.txt", "d*.txt"]) {
      const inputs = [join(folder, "0000.txt"), join(folder, name)];
      expect((await refusal(preparation(inputs))).message).toMatch(/cannot read|matches no file/);
    }
    const inputs = ["0000.txt", "0001.txt", "dangling.txt"].map((name) => join(folder, name));
    const { dataset } = await preparation(inputs, { skipUnreadable: true });
    expect(dataset.sources.map((source) => source.documents)).toEqual([1, 1, 0]);
    const typing = preparation([join(folder, "0000.txt"), join(folder, "00.txt")], {
      skipUnreadable: true,
    });
    expect((await refusal(typing)).message).toMatch(/00\.txt: there is none/);
    await refusal(preparation([join(folder, "dangling.txt")], { skipUnreadable: true }));
  });

  it("decides as records do, where text lies beside links to them", async () => {
    const folder = await writeFiles(await temporaryFolder(), { "README.md": "about it" });
    await symlink("gone", join(folder, "train.jsonl"));
    expect((await refusal(findInput({ path: folder }))).message).toContain("train.jsonl");
  });

  it("is found in the patterns of other trainers' tokens", async () => {
    const folder = await writeFiles(await temporaryFolder(), {
      "a.bin": new Uint8Array(2000),
      "data.yaml": "format: nanogpt\ntrain: '*.bin'\nvocabSize: 300\neosId: 2\n",
    });
    const options = { sequenceLength: 8 };
    await (await TokenDataset.open(join(folder, "data.yaml"), options)).close();
    await symlink("gone", join(folder, "b.bin"));
    const error = await refusal(TokenDataset.open(join(folder, "data.yaml"), options));
    expect(error.message).toContain("b.bin");
  });
});

describe("what is passed over by design", () => {
  it("is told by reason, with the first names", async () => {
    const folder = await writeFiles(await temporaryFolder(), {
      "a.txt": "one",
      "b.txt": "",
      ...Object.fromEntries(Array.from({ length: 9 }, (_, i) => [`pictures/${i}.png`, "x"])),
      "other/c.txt": "two",
    });
    await symlink("other", join(folder, "again"));
    await symlink("a.txt", join(folder, "z.txt"));
    await link(join(folder, "other/c.txt"), join(folder, "other/d.txt"));
    await symlink("gone.png", join(folder, "x.png"));
    const { files, passed, notes } = await findInput({ path: folder });
    expect(files.map(({ path }) => path.slice(folder.length + 1))).toEqual([
      "a.txt",
      "b.txt",
      "other/c.txt",
    ]);
    expect(notes).toEqual([]);
    const reasons = passed.map(({ path, reason }) => `${reason} ${path.slice(folder.length + 1)}`);
    expect(reasons.sort()).toEqual(
      [
        "copy other/d.txt",
        "copy z.txt",
        "empty b.txt",
        "linkedFolder again",
        ...Array.from({ length: 9 }, (_, i) => `type pictures/${i}.png`),
        "type x.png",
      ].sort(),
    );
    const { passedOver } = await preparation([folder]);
    expect(passedOver[0]?.lines).toContain(
      `10 of another type: ${[0, 1, 2, 3, 4].map((i) => `${folder}/pictures/${i}.png`).join(", ")}` +
        ", … (5 more)",
    );
  });

  it("holds for folders not entered, splits, and files about the data", async () => {
    const folder = await writeFiles(await temporaryFolder(), {
      "src/a.py": "x = 1",
      "node_modules/b.py": "x = 2",
    });
    await mkdir(join(folder, "build"));
    const code = await findInput({ path: folder, kind: "code" });
    expect(code.passed.map(({ reason }) => reason)).toEqual(["excluded", "excluded"]);
    const data = await writeFiles(await temporaryFolder(), {
      "README.md": "about",
      "infos.json": "{}",
      "train.jsonl": record("a"),
      "test.jsonl": record("b"),
    });
    const records = await findInput({ path: data, split: "train" });
    expect(records.passed.map(({ reason }) => reason).sort()).toEqual([
      "about",
      "settings",
      "split",
    ]);
  });

  it("holds for a file that two inputs name: it is read twice, and that is said", async () => {
    const folder = await writeFiles(await temporaryFolder(), documents(20));
    const { dataset, warnings } = await preparation([folder, join(folder, "0003.txt")]);
    expect(dataset.sources.map((source) => source.documents)).toEqual([20, 1]);
    expect(warnings.join()).toMatch(/1 files are read again.*0003\.txt/);
  });
});

describe("options of the wrong type", () => {
  it.each<[object, RegExp]>([
    [{ inputs: (async function* () {})() }, /array of paths .* for inputs but .* AsyncGenerator/],
    [{ inputs: "a.txt" }, /for inputs but received "a.txt"/],
    [{ inputs: new Set(["a"]) }, /for inputs but received Set/],
    [{ inputs: [null] }, /for inputs\[0\] but received null/],
    [{ inputs: undefined }, /for inputs but received undefined/],
    [{ inputs: [{ path: "a", minBytes: -1 }] }, /integer from 0 .* for inputs\[0\]\.minBytes but/],
    [{ inputs: [{ path: "a", split: "tset" }] }, /for inputs\[0\]\.split .*; did you mean test\?/],
    [
      { inputs: [{ path: "a", kind: "pdf" }] },
      /one of auto, text, code, records, chat, preference for inputs\[0\]\.kind but received "pdf"/,
    ],
    [{ inputs: [{ path: "a", langages: ["c"] }] }, /unknown option inputs\[0\]\.langages; did/],
    [{ out: 5 }, /for out but received 5/],
    [{ out: "" }, /a path for out but received ""/],
    [{ tokenizer: {} }, /for tokenizer but received \{\}/],
    [{ onProgress: 1 }, /for onProgress but received 1/],
    [{ signal: {} }, /an AbortSignal for signal/],
    [{ workers: 1.5 }, /an integer from 0 to 1024 for workers but received 1.5/],
    [{ skipUnreadable: "yes" }, /for skipUnreadable but received "yes"/],
    [
      { validationFration: 0.1 },
      /unknown option validationFration; did you mean validationFraction/,
    ],
    [{ documentEnd: "none" }, /documentStart and documentEnd are none/],
  ])("%o are an ArgumentError", async (change, message) => {
    const options = { inputs: ["a.txt"], out: "out", tokenizer: quickstart, ...change };
    const error = await prepare(options as never).catch((reason: unknown) => reason);
    expect(error).toBeInstanceOf(ArgumentError);
    expect((error as Error).message).toMatch(message);
  });
});
