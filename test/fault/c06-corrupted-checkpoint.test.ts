// docs/faults.md, rows C6, C7, C8 and C13: a damaged checkpoint is named and skipped, never half
// loaded.
import {
  copyFileSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { matchTensors, openCheckpoint, openNewest } from "../../lib/checkpoint/load.js";
import { saveCheckpoint } from "../../lib/checkpoint/save.js";
import { CheckpointError } from "../../lib/core/errors.js";
import { contentsOf, expectContents } from "../checkpoint/support/contents.js";
import { createHarness, temporaryFolder } from "../checkpoint/support/harness.js";

let folder: ReturnType<typeof temporaryFolder>;
let newest: string;
beforeEach(async () => {
  folder = temporaryFolder();
  await saveCheckpoint(folder.path, 999_999, contentsOf(999_999));
  ({ path: newest } = await saveCheckpoint(folder.path, 1_000_000, contentsOf(1_000_000)));
});
afterEach(() => folder.remove());

const files = [
  "config.json",
  "model-00001-of-00002.safetensors",
  "model-00002-of-00002.safetensors",
  "model.safetensors.index.json",
  "optimizer-moments.safetensors",
  "trainer.json",
  "manifest.json",
];

async function expectFallback(message: RegExp): Promise<void> {
  const warnings: string[] = [];
  const checkpoint = await openNewest(folder.path, { onWarning: (text) => warnings.push(text) });
  expect(checkpoint?.step).toBe(999_999);
  if (checkpoint) await expectContents(checkpoint);
  expect(warnings).toHaveLength(1);
  expect(warnings[0]).toMatch(message);
}

describe.each(files)("%s", (file) => {
  test("flipped bits in it, first, middle and last, are found", async () => {
    const path = join(newest, file);
    const good = readFileSync(path);
    for (const at of [0, good.length >> 1, good.length - 2]) {
      const bad = Buffer.from(good);
      bad[at] = (bad[at] ?? 0) ^ 0x10;
      writeFileSync(path, bad);
      await expectFallback(new RegExp(file.replaceAll(".", "\\.")));
    }
    writeFileSync(path, good);
    expect((await openNewest(folder.path))?.step).toBe(1_000_000);
  });

  test("truncated, emptied, grown or missing, it is named and the checkpoint before is taken", async () => {
    const path = join(newest, file);
    const good = readFileSync(path);
    const named = new RegExp(file.replaceAll(".", "\\."));
    writeFileSync(path, Buffer.concat([good, Buffer.from("{")]));
    await expectFallback(named);
    truncateSync(path, good.length - 2); // the loss of the last newline would be harmless
    await expectFallback(named);
    truncateSync(path, 0);
    await expectFallback(named);
    rmSync(path);
    await expectFallback(named);
    mkdirSync(path);
    await expectFallback(named);
  });
});

test("a stray shard is named", async () => {
  copyFileSync(join(newest, "optimizer-moments.safetensors"), join(newest, "extra.safetensors"));
  await expectFallback(/extra\.safetensors: does not belong/);
});

test("every file at fault is listed at once", async () => {
  truncateSync(join(newest, "config.json"), 3);
  rmSync(join(newest, "trainer.json"));
  await expect(openCheckpoint(newest)).rejects.toThrow(
    /config\.json: has 3 bytes, expected \d+\n {2}trainer\.json: is missing/,
  );
});

test("an empty folder gives null, one with nothing valid an error that lists them", async () => {
  const empty = temporaryFolder();
  expect(await openNewest(empty.path)).toBeNull();
  expect(await openNewest(join(empty.path, "none"))).toBeNull();
  empty.remove();
  for (const name of readdirSync(folder.path)) rmSync(join(folder.path, name, "manifest.json"));
  await expect(openNewest(folder.path)).rejects.toThrow(/none of the 2 checkpoints/);
  await expect(openNewest(folder.path)).rejects.toBeInstanceOf(CheckpointError);
});

test("the newest is the one with the highest number, not the last by name", async () => {
  const big = 12_000_000_000; // one digit more than the names are padded to
  await saveCheckpoint(folder.path, big, contentsOf(big));
  for (const name of [
    "step-99999999999999999999",
    "step-5",
    "step-2000000.tmp",
    "latest",
    "step-",
  ]) {
    mkdirSync(join(folder.path, name));
  }
  writeFileSync(join(folder.path, "step-0013000000000"), "a file");
  expect((await openNewest(folder.path))?.step).toBe(big);
});

test("missing, extra, wrongly shaped and wrongly typed tensors are listed by name", async () => {
  const weights = (await openCheckpoint(newest)).tensors.get("model.safetensors");
  if (!weights) throw new Error("no weights");
  const embedding = {
    name: "model.embed_tokens.weight",
    shape: [33, 16],
    dtypes: ["BF16"] as const,
  };
  const head = { name: "lm_head.weight", shape: [33, 16], dtypes: ["F32", "BF16"] as const };
  const norm = { name: "model.norm.weight", shape: [15], dtypes: ["BF16"] as const };
  matchTensors("x", weights, [embedding, head, norm]);
  expect(() =>
    matchTensors("x", weights, [
      { ...embedding, shape: [16, 33] },
      { ...head, dtypes: ["F32"] },
      { ...norm, name: "model.layers.0.weight" },
    ]),
  ).toThrow(
    "x does not fit:\n" +
      "1 tensors missing:\n  model.layers.0.weight\n" +
      "1 tensors unexpected:\n  model.norm.weight\n" +
      "1 tensors of the wrong shape:\n  model.embed_tokens.weight: expected [16,33], got [33,16]\n" +
      "1 tensors of the wrong dtype:\n  lm_head.weight: expected F32, got BF16",
  );
});

test("a reader beside a running save sees an old or a new checkpoint, never a part", async () => {
  const harness = createHarness();
  const first = 2_000_000;
  // A save has 15 syncs of 5 ms, so the reader sees every stage.
  const writer = harness.run("save-child", [folder.path, first, first + 12], {
    FAULT_DIR: folder.path,
    FAULT_DELAY: "5",
  });
  let done = false;
  void writer.then(() => {
    done = true;
  });
  const seen = new Set<number>();
  while (!done) {
    const checkpoint = await openNewest(folder.path);
    if (checkpoint === null) throw new Error("no checkpoint is left");
    await expectContents(checkpoint);
    seen.add(checkpoint.step);
  }
  expect(await writer).toMatchObject({ code: 0, stderr: "" });
  harness.remove();
  expect(seen.size).toBeGreaterThan(3);
});
