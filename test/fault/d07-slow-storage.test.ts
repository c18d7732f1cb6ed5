// docs/faults.md, row D7: slow and hung storage. The shim makes reads of the data set sleep.
import { rmSync } from "node:fs";
import { afterAll, beforeAll, expect, test } from "vitest";
import { buildShim, preload, temporaryFolder } from "../checkpoint/support/harness.js";
import { buildLibrary } from "../cli/build.js";
import { lastStep, outcome, train, until, writeConfig } from "../support/child-run.js";
import { tinyData } from "../support/tiny-run.js";

let place: { folder: string; data: string };
let shim: string;
const scratch = temporaryFolder();
beforeAll(async () => {
  buildLibrary();
  place = await tinyData();
  shim = buildShim(scratch.path);
});
afterAll(() => {
  scratch.remove();
  rmSync(place.folder, { recursive: true, force: true });
});

/** Reads of the data set from the n-th on take this long. Earlier reads open the data set. */
const slow = (milliseconds: number, from: number, count?: number) => ({
  LD_PRELOAD: preload(shim),
  FAULT_DIR: place.data,
  FAULT_READ_DELAY: String(milliseconds),
  FAULT_READ_POINT: String(from),
  ...(count !== undefined && { FAULT_READ_COUNT: String(count) }),
});

/** A prefetch of one batch, because more would hide the wait. */
const config = (name: string, data: object) =>
  writeConfig(place, name, {
    evaluate: { every: 0 },
    // The shim counts reads, so the test turns off hashing, which reads too.
    data: { train: { [place.data]: 1 }, prefetch: 1, verifyShards: "off", ...data },
  });

test("a step waits for slow storage, says for how long, and nothing else changes", async () => {
  const plain = await config("plain", {});
  expect(await train(plain.file).ended).toMatchObject({ code: 0 });
  const { file, out } = await config("slow", { slowSeconds: 1 });
  const { code, stderr } = await train(file, [], slow(2600, 30, 1)).ended;
  expect(stderr).toMatch(/note: waiting for data for 1 s: is the storage slow\?/);
  expect(stderr).toMatch(/note: waiting for data for 2 s: is the storage slow\?/);
  expect(code).toBe(0);
  expect(await outcome(out, 12)).toEqual(await outcome(plain.out, 12));
}, 120_000);

test("storage that hangs ends the run with 3 at the limit, though its reads never end", async () => {
  const { file, out } = await config("hangs", { hangSeconds: 2 });
  const started = performance.now();
  const { code, signal, stderr } = await train(file, [], slow(600_000, 30)).ended;
  expect({ code, signal }).toEqual({ code: 3, signal: null });
  expect(stderr).toContain("[loader] no data for 2 s: the storage does not answer");
  expect(performance.now() - started).toBeLessThan(100_000);
  expect(await lastStep(out)).toBeGreaterThan(0);
}, 120_000);

test("a second signal ends a run whose storage hangs", async () => {
  const { file, out } = await config("signalled", { slowSeconds: 0.2 });
  const { child, ended } = train(file, [], slow(600_000, 30));
  let text = "";
  for (const stream of [child.stdout, child.stderr]) {
    stream?.on("data", (chunk: Buffer) => {
      text += chunk;
    });
  }
  await until(() => text.includes("waiting for data"), child);
  child.kill("SIGTERM");
  await until(() => text.includes("once more ends it"), child);
  child.kill("SIGTERM");
  expect(await ended).toMatchObject({ code: 75, signal: null });
  expect(await lastStep(out)).toBeGreaterThan(0);
}, 120_000);
