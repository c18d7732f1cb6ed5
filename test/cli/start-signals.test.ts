// While a command has nothing to save, SIGINT and SIGTERM end it at once, whatever it waits for.
// Storage that does not answer ends the command without a signal.
import { rmSync } from "node:fs";
import { afterAll, beforeAll, expect, test } from "vitest";
import { buildShim, preload, temporaryFolder } from "../checkpoint/support/harness.js";
import { train, writeConfig } from "../support/child-run.js";
import { tinyData } from "../support/tiny-run.js";
import { buildLibrary } from "./build.js";

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

/** Every read of the data set from the n-th on hangs. */
const hanging = (from: number) => ({
  LD_PRELOAD: preload(shim),
  FAULT_DIR: place.data,
  FAULT_READ_DELAY: "600000",
  FAULT_READ_POINT: String(from),
});
/** Only one of two ranks starts. */
const lonely = {
  RANK: "0",
  WORLD_SIZE: "2",
  LOCAL_RANK: "0",
  LOCAL_WORLD_SIZE: "2",
  MASTER_ADDR: "127.0.0.1",
  MASTER_PORT: "29871",
};

const moments: [what: string, env: () => Record<string, string>, waitMs: number][] = [
  ["it has just been started", () => ({}), 0],
  ["modules are loaded", () => ({}), 150],
  ["dataset.json hangs", () => hanging(1), 1500],
  ["the first batch hangs", () => hanging(30), 2500],
  ["the other rank is waited for", () => lonely, 2500],
];

test.each(
  moments.flatMap(([what, env, waitMs]) =>
    (["SIGTERM", "SIGINT"] as const).map((signal) => [signal, what, env, waitMs] as const),
  ),
)(
  "%s while %s",
  async (signal, what, env, waitMs) => {
    const { file } = await writeConfig(place, `${what}-${signal}`.replaceAll(" ", "-"), {
      steps: 1_000_000,
      checkpoint: { every: 0 },
    });
    const { child, ended } = train(file, [], env());
    await new Promise((resolve) => setTimeout(resolve, waitMs));
    child.kill(signal);
    const end = await ended;
    // On a fast machine the run may already train, and then it saves.
    const trained = end.stdout.includes("step 1/");
    const code = end.code ?? { SIGTERM: 143, SIGINT: 130 }[end.signal as "SIGTERM" | "SIGINT"];
    expect(code, end.stderr).toBe(trained ? 75 : { SIGTERM: 143, SIGINT: 130 }[signal]);
  },
  120_000,
);

test("a supervised run that has not begun ends with its supervisor, by the signal's code", async () => {
  const { file } = await writeConfig(place, "supervised");
  const { child, ended } = train(file, ["--supervise"], hanging(1));
  await new Promise((resolve) => setTimeout(resolve, 3000));
  child.kill("SIGTERM");
  const end = await ended;
  expect(end.code ?? (end.signal === "SIGTERM" ? 143 : 0), end.stderr).toBe(143);
}, 120_000);

test("storage that does not answer ends a start-up with 3, naming the file", async () => {
  const { file } = await writeConfig(place, "silent");
  const env = { ...hanging(1), LLAMAFORGE_STORAGE_SECONDS: "1" };
  const { code, stderr } = await train(file, [], env).ended;
  expect(stderr).toMatch(/dataset\.json.*no answer for 1 s: the storage does not answer/);
  expect(code).toBe(3);
}, 120_000);
