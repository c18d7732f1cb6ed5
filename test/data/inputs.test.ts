// The files of an input: the content of a folder, splits by name, and files that are no input.
import { readdir, symlink } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { ArgumentError, DataError, UsageError } from "../../lib/core/errors.js";
import { markFile } from "../../lib/files/own-folder.js";
import { prepare } from "../../lib/prepare/prepare.js";
import { findInput, type Input } from "../../lib/prepare/readers/index.js";
import { documents, quickstart, temporaryFolder, writeFiles } from "./support.js";

const record = (text: string) => `${JSON.stringify({ text })}\n`;

/** The names of an input's files below a folder, and the messages to the user. */
async function found(folder: string, input: Partial<Input> = {}) {
  const { files, kind, notes } = await findInput({ path: folder, ...input });
  return { names: files.map(({ path }) => path.slice(folder.length + 1)), kind, notes };
}

describe("a folder of both", () => {
  it("is text although it has .json files, and says how many were left alone", async () => {
    const notes = await writeFiles(await temporaryFolder(), {
      ".obsidian/app.json": "{}",
      ".obsidian/plugins/x.json": "{}",
      "a.md": "one",
      "b/c.txt": "two",
    });
    const text = await found(notes);
    expect(text).toMatchObject({ names: ["a.md", "b/c.txt"], kind: "text" });
    expect(text.notes.join()).toMatch(/read as text; 2 files of records were left alone/);
    expect(await found(notes, { path: join(notes, "**") })).toMatchObject({
      names: ["a.md", "b/c.txt"],
      kind: "text",
    });
    expect((await found(notes, { kind: "records" })).names).toHaveLength(2);
    expect((await found(notes, { kind: "text" })).notes).toEqual([]);
  });

  it("is records if it has .jsonl or parquet, or .json and no text", async () => {
    const about = { "README.md": "about", "LICENSE.txt": "", "infos.json": "{}" };
    const data = await writeFiles(await temporaryFolder(), { ...about, "x.jsonl": record("x") });
    expect(await found(data)).toEqual({ names: ["x.jsonl"], kind: "records", notes: [] });
    await writeFiles(data, { "a.txt": "a", "b.md": "b" });
    const mixed = await found(data);
    expect(mixed).toMatchObject({ names: ["x.jsonl"], kind: "records" });
    expect(mixed.notes.join()).toMatch(/read as records; 2 files of text were left alone/);
    // C4's layout: records in .json, with or without compression, and a README.
    for (const name of ["x.json", "x.json.gz"]) {
      const c4 = await writeFiles(await temporaryFolder(), { "README.md": "c4", [name]: "" });
      expect(await found(c4)).toEqual({ names: [name], kind: "records", notes: [] });
    }
    const readme = await writeFiles(await temporaryFolder(), { "README.md": "alone", "x.css": "" });
    expect(await found(readme)).toMatchObject({ names: ["README.md"], kind: "text" });
  });
});

describe("the split", () => {
  it.each<[string, Partial<Input>, string]>([
    ["text", {}, "txt"],
    ["code", { kind: "code" }, "py"],
    ["records", {}, "jsonl"],
  ])("is that of %s, too", async (_, input, end) => {
    const folder = await writeFiles(await temporaryFolder(), {
      [`train/a.${end}`]: record("a"),
      [`validation/b.${end}`]: record("b"),
    });
    expect((await found(folder, { ...input, split: "train" })).names).toEqual([`train/a.${end}`]);
    const validation = await found(folder, { ...input, split: "validation" });
    expect(validation.names).toEqual([`validation/b.${end}`]);
    expect((await found(folder, { ...input, split: "all" })).names).toHaveLength(2);
    await expect(findInput({ path: folder, ...input, split: "test" })).rejects.toThrow(
      /no file of the split test among 2/,
    );
  });

  it("is not guessed from the names of text and code, but for text the user is told", async () => {
    const folder = await writeFiles(await temporaryFolder(), {
      "train.txt": "a",
      "validation.txt": "b",
      "train.py": "c",
      "test.py": "d",
    });
    const text = await found(folder);
    expect(text.names).toHaveLength(2);
    expect(text.notes.join()).toMatch(/names tell splits apart, and text of all is read/);
    expect(await found(folder, { kind: "code" })).toMatchObject({
      names: ["test.py", "train.py"],
      notes: [],
    });
  });

  it("is checked for a single file", async () => {
    const folder = await writeFiles(await temporaryFolder(), {
      "train.jsonl": record("a"),
      "more.txt": "b",
    });
    const path = join(folder, "train.jsonl");
    expect((await found(folder, { path, split: "train" })).names).toEqual(["train.jsonl"]);
    for (const name of ["train.jsonl", "more.txt"]) {
      await expect(findInput({ path: join(folder, name), split: "validation" })).rejects.toThrow(
        DataError,
      );
    }
    const inputs = [{ path, split: "dev" as never }];
    await expect(prepare({ inputs, out: "out", tokenizer: quickstart })).rejects.toThrow(
      /expected one of train, validation, test, all for inputs\[0\]\.split but received "dev"/,
    );
  });
});

describe("what does not fit the kind", () => {
  it.each<Partial<Input>>([{}, { kind: "text" }, { kind: "records" }])(
    "languages of %j are refused",
    async (input) => {
      const folder = await writeFiles(await temporaryFolder(), { "a.txt": "a", "b.jsonl": "{}" });
      const error = await findInput({ path: folder, ...input, languages: ["rust"] }).catch(
        (reason: unknown) => reason,
      );
      expect(error).toBeInstanceOf(ArgumentError);
      expect((error as Error).message).toMatch(/languages needs kind: "code"/);
    },
  );

  it("a text field where nothing holds records is refused, before anything is written", async () => {
    const folder = await writeFiles(await temporaryFolder(), {
      "in/a.txt": "a",
      "in/b.txt": "b",
      "c.jsonl": '{"body": "c"}\n{"body": "d"}',
    });
    const text = { path: join(folder, "in"), textField: "body" };
    const options = { out: join(folder, "out"), tokenizer: quickstart };
    const error = await prepare({ ...options, inputs: [text] }).catch((reason: unknown) => reason);
    expect(error).toBeInstanceOf(ArgumentError);
    expect((error as Error).message).toMatch(/in: textField: "body" needs records/);
    expect((await readdir(folder)).sort()).toEqual(["c.jsonl", "in"]);
    // The command line gives the option for all inputs. It applies to those that hold records.
    const records = { path: join(folder, "c.jsonl"), textField: "body" };
    const { dataset } = await prepare({ ...options, inputs: [text, records] });
    expect(dataset.sources.map((source) => source.documents)).toEqual([2, 2]);
  });
});

describe("a preparation's own files", () => {
  it("are no input when its output lies in the folder that it reads", async () => {
    const folder = await writeFiles(await temporaryFolder(), documents(30));
    await writeFiles(folder, {
      [`out.tmp/${markFile}`]: "",
      "out.tmp/prepare-progress.json": "{}",
      "out.tmp/more.txt": "a file that was in the way",
      [`out.old/${markFile}`]: "",
      "out.old/old.txt": "an old one",
    });
    const reads = [folder, join(folder, "**"), join(folder, ".")];
    for (const path of reads) {
      const options = { inputs: [path], out: join(folder, "out"), tokenizer: quickstart };
      for (let call = 0; call < 2; call++) {
        const { dataset, warnings } = await prepare(options);
        expect(dataset.sources[0]).toMatchObject({ documents: 30, kind: "text" });
        expect(warnings).toEqual([]);
      }
    }
    // A link does not make it an input either.
    const link = join(await temporaryFolder(), "link");
    await symlink(folder, link);
    const { dataset } = await prepare({
      inputs: [`${link}/`],
      out: join(folder, "out"),
      tokenizer: quickstart,
    });
    expect(dataset.sources[0]?.documents).toBe(30);
  });

  it("may not hold the input", async () => {
    const folder = await temporaryFolder();
    for (const taken of ["out.tmp", "out.old"]) {
      await writeFiles(folder, { [`${taken}/a.txt`]: "precious" });
      const inputs = [join(folder, taken)];
      const refused = prepare({ inputs, out: join(folder, "out"), tokenizer: quickstart });
      await expect(refused).rejects.toThrow(UsageError);
      expect(await readdir(join(folder, taken))).toEqual(["a.txt"]);
    }
  });
});
