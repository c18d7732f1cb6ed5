// docs/faults.md, row C15: the output folder of a running process is moved away, and another run
// takes its place at the old path.
import { createHash } from "node:crypto";
import { mkdir, readdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { beforeAll, expect, test } from "vitest";
import { saveCheckpoint } from "../../lib/checkpoint/save.js";
import { FolderIdentity } from "../../lib/files/folder-identity.js";
import { prepare } from "../../lib/prepare/prepare.js";
import { contentsOf } from "../checkpoint/support/contents.js";
import { buildLibrary } from "../cli/build.js";
import { quickstart, temporaryFolder, writeFiles } from "../data/support.js";
import { expectCodes, startRun, writeConfig as writeRankConfig } from "../dist/ranks.js";
import { lastStep, train, until, writeConfig } from "../support/child-run.js";
import { tinyData } from "../support/tiny-run.js";

let place: { folder: string; data: string };
beforeAll(async () => {
  buildLibrary();
  place = await tinyData();
});

/** Every file of a folder with its content's hash. */
async function contents(folder: string): Promise<Record<string, string>> {
  const files: Record<string, string> = {};
  for (const entry of await readdir(folder, { recursive: true, withFileTypes: true })) {
    if (!entry.isFile()) continue;
    const path = join(entry.parentPath, entry.name);
    files[path] = createHash("sha256")
      .update(await readFile(path))
      .digest("hex");
  }
  return files;
}

/** A run that never ends by itself and saves all the time. */
const endless = { steps: 1_000_000, checkpoint: { every: 2 }, evaluate: { every: 0 } };

test("the run ends with 4 and leaves the folder of the run that took its place alone", async () => {
  const { file, out } = await writeConfig(place, "moved", endless);
  const first = train(file);
  // The record of a step comes before its checkpoint.
  const isSaved = async () => (await readdir(out)).some((name) => /^step-\d+$/.test(name));
  await until(async () => (await lastStep(out)) >= 4 && (await isSaved()), first.child);
  await rename(out, `${out}.old`);
  // A complete second run. Its checkpoints are steps that the retention of the first would delete.
  const other = await writeConfig(place, "moved-second", { steps: 6, out });
  const second = await train(other.file).ended;
  expect(second.code, second.stderr).toBe(0);
  const present = await contents(out);
  const { code, stderr, stdout } = await first.ended;
  expect(code, stderr).toBe(4);
  expect(stderr).toContain(`${out} was moved or removed while it was in use`);
  expect(stderr).toContain("move it back, or name its new place as `out`");
  expect(stderr).not.toContain("training goes on");
  expect(stdout).not.toContain("done:");
  expect(await contents(out)).toEqual(present);

  // The moved folder is complete and can be resumed at its new place.
  const steps = await lastStep(`${out}.old`);
  const on = await writeConfig(place, "moved-on", { steps: steps + 2, out: `${out}.old` });
  const resumed = await train(on.file).ended;
  expect(resumed.code, resumed.stderr).toBe(0);
  expect(resumed.stdout).toMatch(/going on from step \d+/);
}, 120_000);

test("a run whose folder is removed, or one above it moved, ends with 4", async () => {
  for (const how of ["removed", "above"]) {
    await mkdir(join(place.folder, how));
    const options = { ...endless, checkpoint: { every: 0 } };
    const { file, out } = await writeConfig(place, join(how, "run"), options);
    const { child, ended } = train(file);
    await until(async () => (await lastStep(out)) >= 2, child);
    if (how === "removed") await rm(out, { recursive: true, maxRetries: 20, retryDelay: 10 });
    else await rename(join(place.folder, how), join(place.folder, `${how}-old`));
    const { code, stderr } = await ended;
    expect(code, stderr).toBe(4);
    expect(stderr).toContain(`${out} was moved or removed while it was in use (nothing is there`);
  }
}, 120_000);

test("a save in the middle of which the folder is moved writes nothing to the new one, deletes nothing", async () => {
  const parent = await temporaryFolder();
  const folder = join(parent, "run");
  await mkdir(folder);
  const identity = await FolderIdentity.of(folder);
  const contents = contentsOf(3);
  const stranger = "of somebody else";
  const [first] = contents.tensors["model.safetensors"] ?? [];
  const moving = {
    ...contents,
    tensors: {
      ...contents.tensors,
      "model.safetensors": [
        {
          ...(first as NonNullable<typeof first>),
          bytes: async () => {
            await rename(folder, `${folder}.old`);
            await mkdir(join(folder, "step-0000000003.tmp"), { recursive: true });
            await writeFile(join(folder, "step-0000000003.tmp", "trainer.json"), stranger);
            return await (first as NonNullable<typeof first>).bytes();
          },
        },
      ],
    },
  };
  await expect(saveCheckpoint(identity.root, 3, moving, identity)).rejects.toThrow(
    /was moved or removed/,
  );
  await identity.close();
  // The last check comes before the rename. The moved folder has lost nothing and has no partial
  // save.
  expect(await readdir(`${folder}.old`)).toEqual([]);
  const left = join(folder, "step-0000000003.tmp");
  expect(await readdir(left)).toEqual(["trainer.json"]);
  expect(await readFile(join(left, "trainer.json"), "utf8")).toBe(stranger);
});

test("over two ranks, rank 0 ends with 4 and the other, told why, with 6", async () => {
  const { file, out } = await writeRankConfig(place.folder, place.data, 2, endless);
  const ranks = await startRun(file, { worldSize: 2 });
  await until(async () => (await lastStep(out)) >= 4, ranks[0]?.child);
  await rename(out, `${out}.old`);
  await mkdir(out);
  const [zero, one] = await Promise.all(ranks.map(({ ended }) => ended));
  expectCodes([zero as NonNullable<typeof zero>], 4);
  expectCodes([one as NonNullable<typeof one>], 6);
  expect(one?.stderr).toContain("was moved or removed while it was in use");
  expect(await readdir(out)).toEqual([]);
}, 120_000);

test("prepare ends with 3, and neither its journal nor its shards go to the new folder", async () => {
  const folder = await temporaryFolder();
  const line = (id: number) => JSON.stringify({ text: `${id} ${"peace and law ".repeat(40)}` });
  await writeFiles(folder, {
    "a.jsonl": Array.from({ length: 6000 }, (_, id) => line(id)).join("\n"),
  });
  const out = join(folder, "data");
  let moved = false;
  const running = prepare({
    inputs: [join(folder, "a.jsonl")],
    out,
    tokenizer: quickstart,
    shardTokens: 20_000,
    workers: 0,
    onProgress: async () => {
      if (moved) return;
      moved = true;
      await rename(`${out}.tmp`, `${out}.moved`);
      await mkdir(`${out}.tmp`);
      await writeFile(join(`${out}.tmp`, "mine.txt"), "of somebody else");
    },
  });
  await expect(running).rejects.toThrow(/was moved or removed while it was in use/);
  await expect(running).rejects.toMatchObject({ exitCode: 3 });
  expect(await readdir(`${out}.tmp`)).toEqual(["mine.txt"]);
  await expect(readdir(out)).rejects.toThrow("ENOENT");
  expect(await readdir(`${out}.moved`)).not.toEqual([]);
});
