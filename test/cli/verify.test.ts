import { cpSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { saveCheckpoint } from "../../lib/checkpoint/save.js";
import { contentsOf } from "../checkpoint/support/contents.js";
import { tinyData } from "../support/tiny-run.js";
import { buildLibrary } from "./build.js";
import { llamaforge } from "./run.js";

let folder: string;
let data: string;
beforeAll(async () => {
  buildLibrary();
  ({ folder, data } = await tinyData());
  for (const step of [5, 10]) await saveCheckpoint(folder, step, contentsOf(step));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function flip(path: string): void {
  const bytes = readFileSync(path);
  bytes[bytes.length >> 1] = (bytes[bytes.length >> 1] as number) ^ 1;
  writeFileSync(path, bytes);
}

test("a checkpoint, a run and a data set that are whole", async () => {
  const one = await llamaforge(["verify", join(folder, "step-0000000005")]);
  expect(one).toMatchObject({ code: 0, stderr: "" });
  expect(one.stdout).toMatch(/checkpoint of step 5, 6 files, [\d,]+ bytes, all hashes match/);
  const run = await llamaforge(["verify", folder]);
  expect(run.stdout.trimEnd().split("\n")).toHaveLength(2);
  const set = await llamaforge(["verify", data]);
  expect(set).toMatchObject({ code: 0 });
  expect(set.stdout).toMatch(/train [\d,]+ tokens in 1 shards, .*all hashes match/);
});

test("one flipped bit is found: exit code 4 for a checkpoint, 3 for data, naming the file", async () => {
  flip(join(folder, "step-0000000010", "model-00002-of-00002.safetensors"));
  const run = await llamaforge(["verify", folder]);
  expect(run.code).toBe(4);
  expect(run.stdout).toContain("step 5");
  expect(run.stderr).toMatch(/model-00002-of-00002\.safetensors: has the hash/);
  const copy = join(folder, "copy");
  cpSync(data, copy, { recursive: true });
  const shard = readdirSync(copy).find((name) => /^train-.*\.bin$/.test(name)) as string;
  flip(join(copy, shard));
  const set = await llamaforge(["verify", copy]);
  expect(set.code).toBe(3);
  expect(set.stderr).toContain(shard);
});

test("a folder of something else is a usage error that says what was looked for", async () => {
  const none = await llamaforge(["verify", join(folder, "texts")]);
  expect(none.code).toBe(2);
  expect(none.stderr).toContain("is no checkpoint (manifest.json), run (step-*)");
});
