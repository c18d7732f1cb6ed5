import { isUtf8 } from "node:buffer";
import { symlink } from "node:fs/promises";
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { ArgumentError, DataError } from "../../lib/core/errors.js";
import { findInput, type Input } from "../../lib/prepare/readers/index.js";
import { invalidUtf8Offset } from "../../lib/prepare/readers/utf8.js";
import { addresses, readDocuments as read, temporaryFolder, writeFiles } from "./support.js";

const origins = (folder: string, documents: readonly { origin: string }[]): string[] =>
  documents.map((document) => document.origin.slice(folder.length + 1));

describe("readers", () => {
  it("reads the text files of a folder in a fixed order, one document each", async () => {
    const folder = await writeFiles(await temporaryFolder(), {
      "b.txt": "two",
      "a/z.md": "one é",
      "a.TXT": "three",
      "c.json": "{}",
      "B.txt": "four",
      "empty.txt": "",
    });
    const documents = await read({ path: folder, kind: "text" });
    expect(origins(folder, documents)).toEqual(["B.txt", "a.TXT", "a/z.md", "b.txt"]);
    expect(documents[2]).toMatchObject({ text: "one é", bytes: 6, origin: join(folder, "a/z.md") });
  });

  it("reads the source code of a folder, and not what was built or fetched", async () => {
    const folder = await writeFiles(await temporaryFolder(), {
      "lib/a.ts": "a",
      "csrc/b.cpp": "b",
      "csrc/b.CU": "c",
      "readme.md": "no",
      "node_modules/x/i.js": "no",
      ".git/hook.sh": "no",
      "build/gen.cpp": "no",
      "lib/dist/a.js": "no",
    });
    const code = await read({ path: folder, kind: "code" });
    expect(origins(folder, code)).toEqual(["csrc/b.CU", "csrc/b.cpp", "lib/a.ts"]);
    const some = await read({
      path: folder,
      kind: "code",
      languages: ["typescript", "javascript"],
    });
    expect(origins(folder, some)).toEqual(["lib/a.ts"]);
    const all = await read({ path: folder, kind: "code", languages: ["javascript"], exclude: [] });
    expect(origins(folder, all)).toEqual(["lib/dist/a.js", "node_modules/x/i.js"]);
  });

  it("reads a file whatever its name, follows links to files and not to folders", async () => {
    const folder = await writeFiles(await temporaryFolder(), {
      notes: "text",
      "in/a.txt": "a",
    });
    expect(await read({ path: join(folder, "notes") })).toHaveLength(1);
    await symlink(join(folder, "in"), join(folder, "in/loop"));
    await symlink(join(folder, "notes"), join(folder, "in/b.txt"));
    // A second name of a file that is already read.
    await symlink(join(folder, "in/a.txt"), join(folder, "in/c.txt"));
    expect(origins(folder, await read({ path: folder }))).toEqual(["in/a.txt", "in/b.txt"]);
  });

  it("reads the demo addresses", async () => {
    expect(await read({ path: addresses })).toHaveLength(233);
  });

  it("keeps NUL, CRLF and U+FFFD, and drops a byte order mark", async () => {
    const text = "\0a\r\nb\ufffd";
    const folder = await writeFiles(await temporaryFolder(), {
      "a.txt": text,
      "b.txt": `\ufeff${text}`,
      "c.txt": "\ufeff",
    });
    const documents = await read({ path: folder });
    expect(documents.map((document) => document.text)).toEqual([text, text]);
  });

  it("refuses invalid UTF-8 with file and offset, or replaces it", async () => {
    const folder = await writeFiles(await temporaryFolder(), {
      "bad.txt": Buffer.from([0x61, 0xc3, 0xa9, 0xff, 0x62]),
    });
    await expect(read({ path: folder })).rejects.toThrow(
      /bad\.txt: invalid UTF-8 at byte 3 \(0xff\).*invalidUtf8: "replace"/,
    );
    const [document] = await read({ path: folder }, { invalidUtf8: "replace" });
    expect(document).toMatchObject({ text: "aé\ufffdb", bytes: 7 });
  });

  it("finds the first byte that is no UTF-8", () => {
    // All bytes before the reported one are valid.
    fc.assert(
      fc.property(
        fc.uint8Array({ maxLength: 40 }),
        fc.string({ unit: "binary", maxLength: 20 }),
        (junk, text) => {
          const bytes = Buffer.concat([Buffer.from(text), junk]);
          const offset = invalidUtf8Offset(bytes);
          expect(offset === -1).toBe(isUtf8(bytes));
          if (offset >= 0) {
            expect(isUtf8(bytes.subarray(0, offset))).toBe(true);
            const replaced = new TextDecoder().decode(bytes.subarray(offset));
            expect(replaced.startsWith("\ufffd")).toBe(true);
          }
        },
      ),
      { numRuns: 500 },
    );
    for (const bad of [
      "c080",
      "e08080",
      "eda080",
      "f08080 80",
      "f4908080",
      "80",
      "e282",
      "f5808080",
    ]) {
      const bytes = Buffer.from(`6162${bad.replace(" ", "")}`, "hex");
      expect(invalidUtf8Offset(bytes)).toBe(2);
    }
  });

  it.each<[string, Input, new (message: string) => Error, RegExp]>([
    ["a missing path", { path: "/nonexistent/x" }, DataError, /cannot read \/nonexistent\/x/],
    ["a device", { path: "/dev/null" }, DataError, /no regular files \(FIFO, socket, device\)/],
    [
      "an unknown language",
      { path: "/tmp", kind: "code", languages: ["klingon"] },
      ArgumentError,
      /unknown language "klingon"; known: c, /,
    ],
  ])("refuses %s", async (_, input, type, message) => {
    const error = await findInput(input).catch((reason: unknown) => reason);
    expect(error).toBeInstanceOf(type);
    expect((error as Error).message).toMatch(message);
  });

  it("refuses a folder without a file of the kind", async () => {
    const folder = await writeFiles(await temporaryFolder(), { "a.ts": "x" });
    await expect(findInput({ path: folder })).rejects.toThrow(/no text file in it.*kind: "code"/);
  });
});
