// docs/faults.md, row C16: a checkpoint with right hashes and impossible values is refused with
// file and tensor.
import { createHash } from "node:crypto";
import { cp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { beforeAll, describe, expect, test } from "vitest";
import { openCheckpoint } from "../../lib/checkpoint/load.js";
import { verifyCheckpoint } from "../../lib/checkpoint/manifest.js";
import { CheckpointError } from "../../lib/core/errors.js";
import { Trainer } from "../../lib/train/trainer.js";
import { buildLibrary } from "../cli/build.js";
import { expectCodes, runToEnd, writeConfig as writeRankConfig } from "../dist/ranks.js";
import { fault, train, writeConfig } from "../support/child-run.js";
import { tinyConfig, tinyData } from "../support/tiny-run.js";

let place: { folder: string; data: string };
let sound: string;
const quiet = { evaluate: { every: 0 } };
const recipe = {
  ...quiet,
  steps: 4,
  checkpoint: { every: 2 },
  optimizer: { peakLr: 5e-3, warmupSteps: 2, decaySteps: 9 },
};
const newest = "step-0000000004";
beforeAll(async () => {
  buildLibrary();
  place = await tinyData();
  const { file, out } = await writeConfig(place, "sound", recipe);
  expect(await train(file).ended).toMatchObject({ code: 0 });
  sound = out;
}, 180_000);

/** Rewrites a file of a checkpoint and gives it a matching manifest. */
async function replace(checkpoint: string, file: string, bytes: Uint8Array): Promise<void> {
  await writeFile(join(checkpoint, file), bytes);
  const path = join(checkpoint, "manifest.json");
  const { check: _, ...body } = JSON.parse(await readFile(path, "utf8"));
  body.files[file] = {
    bytes: bytes.length,
    sha256: createHash("sha256").update(bytes).digest("hex"),
  };
  const check = createHash("sha256").update(JSON.stringify(body)).digest("hex");
  await writeFile(path, JSON.stringify({ ...body, check }));
}

/** Takes a file out of the manifest. */
async function unlist(checkpoint: string, name: string): Promise<void> {
  const path = join(checkpoint, "manifest.json");
  const { check: _, ...body } = JSON.parse(await readFile(path, "utf8"));
  delete body.files[name];
  const check = createHash("sha256").update(JSON.stringify(body)).digest("hex");
  await writeFile(path, JSON.stringify({ ...body, check }));
}

type Header = Record<string, { dtype: string; data_offsets: [number, number] }>;

/** Sets an element of a tensor. */
async function setElement(
  checkpoint: string,
  file: string,
  tensor: string,
  at: number,
  value: number,
) {
  const bytes = await readFile(join(checkpoint, file));
  const size = Number(bytes.readBigUInt64LE(0));
  const header = JSON.parse(bytes.toString("utf8", 8, 8 + size)) as Header;
  const { dtype, data_offsets } = header[tensor] as Header[string];
  const start = 8 + size + data_offsets[0];
  if (dtype === "F32") bytes.writeFloatLE(value, start + 4 * at);
  else
    bytes.writeUInt16LE(new Uint32Array(Float32Array.of(value).buffer)[0]! >>> 16, start + 2 * at);
  await replace(checkpoint, file, bytes);
}

const state = "optimizer-state.safetensors";
let copies = 0;

/** A run whose newest checkpoint was changed by the given function. */
async function changed(change: (checkpoint: string) => Promise<void>) {
  const { file, out } = await writeConfig(place, `copy-${copies++}`, { ...recipe, steps: 7 });
  await cp(sound, out, { recursive: true });
  const checkpoint = join(out, newest);
  await change(checkpoint);
  await verifyCheckpoint(checkpoint, { hashes: true });
  return { file, out, checkpoint };
}

/** The error with which a trainer refuses it. */
async function refusal(change: (checkpoint: string) => Promise<void>): Promise<CheckpointError> {
  const { out, checkpoint } = await changed(change);
  const config = tinyConfig(place.data, out, { ...recipe, steps: 7 });
  const error = await Trainer.create(config, { resume: checkpoint }).then(
    () => null,
    (error: unknown) => error,
  );
  expect(error).toBeInstanceOf(CheckpointError);
  return error as CheckpointError;
}

test("the command ends with 4 and the tensor's name, and does not say that it is done", async () => {
  const { file } = await changed((at) => setElement(at, state, "guard.state", 2, -1));
  const { code, stderr, stdout } = await train(file).ended;
  expect(code, stderr).toBe(4);
  expect(stderr).toContain(`${newest}/${state}: tensor guard.state: element 2 (adam step) is -1`);
  expect(stdout).not.toContain("done");
}, 60_000);

describe("an element of a tensor", () => {
  test.each([
    ["guard.state", 2, -1, "element 2 (adam step) is -1"],
    ["guard.state", 2, Number.NaN, "element 2 (adam step) is NaN"],
    ["guard.state", 2, 2, "element 0 (filled) is 4, expected 2"],
    ["guard.state", 1, 3.5, "element 1 (next) is 3.5"],
    ["guard.state", 3, 1, "element 3 (skips in a row) is 1, above all skips"],
    ["guard.state", 6, 1, "element 6 is 1, expected 0"],
    ["guard.state", 9, Number.POSITIVE_INFINITY, "element 9 is Infinity, expected a finite loss"],
    ["guard.state", 8 + 128, -2, "element 136 is -2, expected a gradient norm"],
    ["guard.state", 8 + 127, 3, "element 135 is 3, expected 0"],
    ["norm.weight.m", 5, Number.NaN, "element 5 is nan, expected a finite number"],
    [
      "norm.weight.v",
      31,
      -1e-9,
      "element 31 is -1e-09, expected a finite number that is not negative",
    ],
    ["blocks.1.attention.qkv.weight.v", 7, Number.POSITIVE_INFINITY, "element 7 is inf"],
    ["embedding.weight.master", 4096 * 32 - 1, Number.NaN, "element 131071 is nan"],
  ])(
    "%s[%i] = %d",
    async (tensor, at, value, message) => {
      const error = await refusal((checkpoint) => setElement(checkpoint, state, tensor, at, value));
      expect(error.message).toContain(`${newest}/${state}: tensor ${tensor}: `);
      expect(error.message).toContain(message);
    },
    60_000,
  );

  test("of the weights", async () => {
    const name = "model.layers.0.mlp.down_proj.weight";
    const error = await refusal((checkpoint) =>
      setElement(checkpoint, "model.safetensors", name, 3, Number.NaN),
    );
    expect(error.message).toContain(
      `${newest}/model.safetensors: tensor ${name}: element 3 is nan`,
    );
  }, 60_000);
});

describe("trainer.json", () => {
  const edit = (change: (state: Record<string, unknown>) => void) => async (checkpoint: string) => {
    const trainer = JSON.parse(await readFile(join(checkpoint, "trainer.json"), "utf8"));
    change(trainer);
    await replace(checkpoint, "trainer.json", Buffer.from(JSON.stringify(trainer)));
  };
  test.each<[string, (state: Record<string, unknown>) => void, string]>([
    ["step", (s) => Object.assign(s, { step: 3 }), "step is 3, that of manifest.json 4"],
    ["position", (s) => Object.assign(s, { position: 3 }), "position is 3, below one window"],
    ["tokens", (s) => Object.assign(s, { tokens: 7 }), "tokens is 7, position 16 windows of 32"],
    ["skips", (s) => Object.assign(s, { skips: [0] }), "skips has 1 entries, expected 4"],
    ["skips", (s) => Object.assign(s, { skips: [0, 0, 0, 1] }), "skips ends with 1 skipped steps"],
  ])(
    "%s",
    async (_, change, message) => {
      const error = await refusal(edit(change));
      expect(error.message).toContain(`${newest}: trainer.json: ${message}`);
    },
    60_000,
  );
});

test.each(["tokenizer_config.json", "trainer.json", "model.safetensors.index.json"])(
  "%s, which the manifest does not list, is not loaded",
  async (name) => {
    const copy = join(place.folder, `stray-${copies++}`, newest);
    await cp(join(sound, newest), copy, { recursive: true });
    if (name !== "trainer.json") await replace(copy, name, Buffer.from("{}"));
    await unlist(copy, name);
    await expect(openCheckpoint(copy)).rejects.toThrow(
      `${name}: does not belong to this checkpoint`,
    );
  },
);

test("a checkpoint without trainer.json is not one to go on from", async () => {
  const copy = join(place.folder, `stray-${copies++}`, newest);
  await cp(join(sound, newest), copy, { recursive: true });
  await rm(join(copy, "trainer.json"));
  await unlist(copy, "trainer.json");
  await expect(openCheckpoint(copy)).rejects.toThrow("manifest.json does not list trainer.json");
});

test("over two ranks, each ends with the tensor's name or is told of it", async () => {
  const { file, out } = await writeRankConfig(place.folder, place.data, 2, { ...quiet, steps: 4 });
  expectCodes(await runToEnd(file, { worldSize: 2 }), 0);
  await setElement(join(out, newest), state, "guard.state", 2, -1);
  const results = await runToEnd(file, { worldSize: 2, args: () => ["--set", "steps=6"] });
  for (const { code, stderr } of results) {
    expect([4, 6]).toContain(code);
    expect(stderr).toContain("tensor guard.state: element 2 (adam step) is -1");
  }
  expect(results.some(({ code }) => code === 4)).toBe(true);
}, 60_000);

describe("weights that become NaN", () => {
  const broken =
    /step 4: weights or moments are not finite in embedding, blocks\.0, blocks\.1 and \d more groups: this/;
  // At the last step, where no later loss would show it, and before a save in the middle.
  test.each([4, 9])(
    "a run of %i steps ends with 5, and keeps what it saved before",
    async (steps) => {
      const { file, out } = await writeConfig(place, `nan-${steps}`, { ...recipe, steps });
      const { code, stderr, stdout } = await train(file, [], fault("updated:4:nan")).ended;
      expect(code, stderr).toBe(5);
      expect(stderr).toMatch(broken);
      expect(stdout).not.toContain("done");
      expect((await readdir(out)).filter((name) => name.startsWith("step-"))).toEqual([
        "step-0000000002",
      ]);
      const again = await train(file).ended;
      expect(again.code, again.stderr).toBe(0);
      expect(again.stdout).toContain("going on from step 2");
    },
    60_000,
  );

  test.each(["replicated", "zero1", "full_shard"])(
    "on one of two ranks, %s: both end with 5",
    async (parallel) => {
      const options = { ...quiet, steps: 4, checkpoint: { every: 2 }, parallel };
      const { file } = await writeRankConfig(place.folder, place.data, 2, options);
      const results = await runToEnd(file, {
        worldSize: 2,
        env: (rank) => (rank === 1 ? fault("updated:4:nan") : {}),
      });
      expectCodes(results, 5);
      for (const { stderr } of results) expect(stderr).toMatch(broken);
    },
    60_000,
  );
});
