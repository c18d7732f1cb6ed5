// `prepare` derives names from the user's (OUT.tmp, OUT.old, OUT.lock). It never touches files of
// the user at those names.
import { cp, mkdir, readdir, rename, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { UsageError } from "../../lib/core/errors.js";
import { verifyDataset } from "../../lib/data/verify.js";
import { acquireLock } from "../../lib/files/lock.js";
import { thisOwner } from "../../lib/files/lock-owner.js";
import { markFile } from "../../lib/files/own-folder.js";
import { prepare } from "../../lib/prepare/prepare.js";
import { contentsOf, documents, quickstart, temporaryFolder, writeFiles } from "./support.js";

async function workplace() {
  const folder = await temporaryFolder();
  await writeFiles(join(folder, "in"), documents(30));
  const out = join(folder, "own");
  const run = (options = {}) =>
    prepare({ inputs: [join(folder, "in")], out, tokenizer: quickstart, ...options });
  return { folder, out, run };
}

describe("a folder of the user's beside the output", () => {
  it.each(["own.old", "own.tmp"])("%s is refused before anything is changed", async (name) => {
    const { folder, out, run } = await workplace();
    await writeFiles(folder, { [`${name}/thesis.txt`]: "precious" });
    for (const options of [{}, { overwrite: true, startOver: true }]) {
      const error = await run(options).catch((reason: unknown) => reason);
      expect(error).toBeInstanceOf(UsageError);
      expect((error as Error).message).toContain(join(folder, name));
      expect((error as Error).message).toMatch(/in the way/);
      expect(await contentsOf(join(folder, name))).toHaveProperty(["thesis.txt"]);
      expect((await readdir(folder)).sort()).toEqual(["in", name].sort());
    }
    // A data set already in the output folder stays unchanged.
    await rename(join(folder, name), join(folder, "kept"));
    await run();
    const before = await contentsOf(out);
    await rename(join(folder, "kept"), join(folder, name));
    await expect(run({ shardTokens: 100 })).rejects.toThrow(UsageError);
    expect(await contentsOf(out)).toEqual(before);
  });

  it("is the user's too if it is a data set that he moved there, or a link, or a file", async () => {
    const { folder, out, run } = await workplace();
    await run();
    for (const name of ["own.old", "own.tmp"]) {
      await cp(out, join(folder, name), { recursive: true });
      await expect(run()).rejects.toThrow(UsageError);
      await verifyDataset(join(folder, name));
      await rename(join(folder, name), join(folder, "elsewhere", name)).catch(async () => {
        await mkdir(join(folder, "elsewhere"), { recursive: true });
        await rename(join(folder, name), join(folder, "elsewhere", name));
      });
    }
    await symlink(join(folder, "elsewhere/own.old"), join(folder, "own.old"));
    await expect(run()).rejects.toThrow(UsageError);
    await verifyDataset(join(folder, "own.old"));
    await writeFile(join(folder, "own.tmp"), "a file");
    await expect(run()).rejects.toThrow(UsageError);
  });

  it("is ours where our mark is in it: the call goes on, and leaves nothing", async () => {
    const { folder, out, run } = await workplace();
    await run();
    const before = await contentsOf(out);
    // A call was killed between its two renames: the old data set is in our folder.
    await writeFiles(folder, { [`own.old/${markFile}`]: "" });
    await rename(out, join(folder, "own.old/own"));
    await run();
    expect(await contentsOf(out)).toEqual(before);
    expect((await readdir(folder)).sort()).toEqual(["in", "own"]);
    // A call was killed right after the renames: files of unfinished work are in the data set.
    await writeFiles(out, { [markFile]: "", "prepare-progress.json": "{}" });
    await run();
    expect(await contentsOf(out)).toEqual(before);
  });
});

describe("a lock file", () => {
  it.each([
    ["a text", "dependencies: none"],
    ["nothing", ""],
    ["another program's process", JSON.stringify({ pid: 1, host: thisOwner().host })],
  ])("with %s in it is not removed", async (_, content) => {
    const { folder, run } = await workplace();
    await writeFiles(folder, { "own.lock": content });
    await expect(run()).rejects.toThrow(/in use by another program .*own\.lock/);
    expect((await readdir(folder)).sort()).toEqual(["in", "own.lock"]);
  });

  it("that another one has taken since is not removed with ours", async () => {
    const { folder } = await workplace();
    const path = join(folder, "own.lock");
    const lock = await acquireLock(path, "own");
    await writeFile(path, "another one's");
    await lock.release();
    expect(await readdir(folder)).toContain("own.lock");
  });
});
