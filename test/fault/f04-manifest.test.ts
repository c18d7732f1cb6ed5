// docs/faults.md, row F4: a hostile or damaged manifest or trainer state is a typed error.
import { createHash } from "node:crypto";
import { readFileSync, symlinkSync, unlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { afterEach, beforeEach, expect, test } from "vitest";
import { toJson } from "../../lib/checkpoint/durable.js";
import { openCheckpoint } from "../../lib/checkpoint/load.js";
import { checkRun, readManifest, verifyCheckpoint } from "../../lib/checkpoint/manifest.js";
import { saveCheckpoint } from "../../lib/checkpoint/save.js";
import { CheckpointError } from "../../lib/core/errors.js";
import { contentsOf } from "../checkpoint/support/contents.js";
import { temporaryFolder } from "../checkpoint/support/harness.js";

let folder: ReturnType<typeof temporaryFolder>;
let path: string;
let manifest: string;
beforeEach(async () => {
  folder = temporaryFolder();
  ({ path } = await saveCheckpoint(folder.path, 5, contentsOf(5)));
  manifest = join(path, "manifest.json");
});
afterEach(() => folder.remove());

/** Writes a manifest with a right hash of itself, so that later checks are reached. */
function forge(change: (body: Record<string, unknown>) => void): void {
  const { check: _, ...body } = JSON.parse(readFileSync(manifest, "utf8"));
  change(body);
  const check = createHash("sha256").update(JSON.stringify(body)).digest("hex");
  writeFileSync(manifest, JSON.stringify({ ...body, check }));
}

test("a saved checkpoint verifies, and says what it is of", async () => {
  const { step, run, files } = await verifyCheckpoint(path, { hashes: true });
  expect(step).toBe(5);
  expect(run).toEqual({ config: "c0ffee", worldSize: 1 });
  expect([...files.keys()].sort()).toEqual([
    "config.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "optimizer-moments.safetensors",
    "trainer.json",
  ]);
  for (const [name, { sha256, bytes }] of files) {
    const content = readFileSync(join(path, name));
    expect(createHash("sha256").update(content).digest("hex")).toBe(sha256);
    expect(content.length).toBe(bytes);
  }
});

test("any flipped bit of the manifest is noticed", async () => {
  const good = readFileSync(manifest);
  await fc.assert(
    fc.asyncProperty(fc.nat(good.length * 8 - 1), async (bit) => {
      const bad = Buffer.from(good);
      bad[bit >> 3] = (bad[bit >> 3] ?? 0) ^ (1 << (bit & 7));
      writeFileSync(manifest, bad);
      const same = await readManifest(path).then(
        // The mutation may replace white space by white space, which gives an equal manifest.
        (read) => toJson("", { ...read, files: [...read.files] }),
        (error: unknown) => {
          expect(error).toBeInstanceOf(CheckpointError);
          return null;
        },
      );
      writeFileSync(manifest, good);
      const right = await readManifest(path);
      if (same !== null) expect(same).toBe(toJson("", { ...right, files: [...right.files] }));
    }),
    { numRuns: 300 },
  );
});

test.each([
  ["../../etc/passwd", /plain file name/],
  ["/etc/passwd", /plain file name/],
  [".", /plain file name/],
])("a manifest that names %s is refused", async (name, message) => {
  forge((body) => {
    (body.files as Record<string, unknown>)[name] = { bytes: 1, sha256: "0".repeat(64) };
  });
  await expect(verifyCheckpoint(path, { hashes: true })).rejects.toThrow(message);
});

test.each([
  ["a future version", { version: 2 }, /version 2, this .* version 1/],
  ["another format", { format: "zip" }, /expected the manifest/],
  ["a fractional step", { step: 1.5 }, /step must be/],
  ["a negative step", { step: -1 }, /step must be/],
  ["another step than its folder", { step: 6 }, /holds step 6/],
  ["files as a list", { files: [] }, /must be objects/],
  ["a negative size", { files: { a: { bytes: -1, sha256: "" } } }, /a needs/],
  ["a short hash", { files: { a: { bytes: 1, sha256: "ab" } } }, /a needs/],
])("a manifest with %s is refused", async (_what, fields, message) => {
  forge((body) => Object.assign(body, fields));
  await expect(verifyCheckpoint(path, { hashes: false })).rejects.toThrow(message);
  await expect(verifyCheckpoint(path, { hashes: false })).rejects.toBeInstanceOf(CheckpointError);
});

test("a manifest that is huge, deep, a link or not UTF-8 is refused", async () => {
  for (const [content, message] of [
    [Buffer.alloc(17 * 1024 * 1024, " "), /more than the limit/],
    [Buffer.from("[".repeat(1_000_000)), /not valid JSON/],
    [Buffer.from([0x22, 0xff, 0x22]), /not valid JSON/],
    [
      Buffer.from('{"__proto__":{"format":"llamaforge-checkpoint","version":1}}'),
      /expected the manifest/,
    ],
    [Buffer.alloc(0), /is empty/],
  ] as const) {
    writeFileSync(manifest, content);
    await expect(readManifest(path)).rejects.toThrow(message);
  }
  unlinkSync(manifest);
  await expect(readManifest(path)).rejects.toThrow(/ENOENT/);
  symlinkSync("config.json", manifest);
  await expect(readManifest(path)).rejects.toThrow(/symbolic link/);
  expect(({} as { format?: string }).format).toBeUndefined();
});

test("a checkpoint of another run is refused with both values of all that differs", () => {
  const saved = { run: { worldSize: 4, config: "a", vocabulary: 4096 } };
  checkRun("x", saved, { worldSize: 4 });
  expect(() => checkRun("x", saved, { documents: { maskDocuments: true } })).toThrow(
    'documents: the checkpoint has none, this run {"maskDocuments":true}',
  );
  expect(() => checkRun("x", saved, { worldSize: 2, config: "a", vocabulary: 32000 })).toThrow(
    "x is from a different run:\n" +
      "  worldSize: the checkpoint has 4, this run 2\n" +
      "  vocabulary: the checkpoint has 4096, this run 32000",
  );
});

test("what JSON would change is not saved", async () => {
  const cycle: Record<string, unknown> = {};
  cycle.self = cycle;
  for (const [trainer, message] of [
    [{ loss: Number.NaN }, /trainer\.json\.loss is NaN/],
    [{ window: [1, Number.POSITIVE_INFINITY] }, /window\.1 is Infinity/],
    [{ seed: 1n }, /seed is of type bigint/],
    [{ when: new Date() }, /when is a Date/],
    [{ values: new Float32Array(2) }, /values is a Float32Array/],
    [cycle, /contains itself/],
    [undefined, /type undefined/],
  ] as const) {
    await expect(saveCheckpoint(folder.path, 6, { ...contentsOf(6), trainer })).rejects.toThrow(
      message,
    );
  }
  const trainer = { big: Number.MAX_SAFE_INTEGER, tiny: 5e-324, third: 1 / 3, absent: undefined };
  const saved = await saveCheckpoint(folder.path, 7, { ...contentsOf(7), trainer });
  expect((await openCheckpoint(saved.path)).trainer).toEqual({
    big: Number.MAX_SAFE_INTEGER,
    tiny: 5e-324,
    third: 1 / 3,
  });
});
