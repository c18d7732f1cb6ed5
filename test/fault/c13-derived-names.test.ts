// docs/faults.md, row C14: saves need names in a run's folder (step-N.tmp, .trash, step-N,
// run.lock). Files of the user with these names stay.
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { cleanUp, discard, listCheckpoints } from "../../lib/checkpoint/folder.js";
import { acquireRunLock, prepareOutputFolder } from "../../lib/checkpoint/lock.js";
import { saveModel } from "../../lib/checkpoint/model.js";
import { applyRetention } from "../../lib/checkpoint/retention.js";
import { saveCheckpoint } from "../../lib/checkpoint/save.js";
import { CheckpointError, UsageError } from "../../lib/core/errors.js";
import { markFile } from "../../lib/files/own-folder.js";
import { Llama } from "../../lib/model/llama.js";
import { llamaConfig } from "../../lib/model/llama-config.js";
import { writeReport } from "../../lib/report/html.js";
import { refuseForeignRecords } from "../../lib/train/own-records.js";
import { Trainer } from "../../lib/train/trainer.js";
import { contentsOf } from "../checkpoint/support/contents.js";
import { temporaryFolder } from "../checkpoint/support/harness.js";
import { tinyConfig, tinyData } from "../support/tiny-run.js";

let folder: ReturnType<typeof temporaryFolder>;
beforeEach(() => {
  folder = temporaryFolder();
});
afterEach(() => folder.remove());

/** A file of the user's somewhere in the run's folder. */
function precious(path: string): string {
  const file = join(folder.path, path);
  mkdirSync(dirname(file), { recursive: true });
  writeFileSync(file, "precious");
  return file;
}

test.each(["step-0000000002.tmp/a.txt", ".trash/a.txt", ".trash", "step-7.tmp"])(
  "%s of the user's is refused at the start, with exit code 2, and nothing is removed",
  async (path) => {
    const ours = join(folder.path, "step-0000000001.tmp");
    mkdirSync(ours);
    writeFileSync(join(ours, markFile), "");
    const file = precious(path);
    const error = await cleanUp(folder.path).catch((reason: unknown) => reason);
    expect(error).toBeInstanceOf(UsageError);
    expect((error as Error).message).toContain(path.split("/")[0]);
    expect(readFileSync(file, "utf8")).toBe("precious");
    expect(existsSync(ours)).toBe(true);
  },
);

test("a killed save's folder and trash go, whatever they hold", async () => {
  for (const name of ["step-0000000002.tmp", ".trash"]) {
    precious(`${name}/checkpoint/half.safetensors`);
    writeFileSync(join(folder.path, name, markFile), "");
  }
  mkdirSync(join(folder.path, "step-0000000003.tmp"));
  await cleanUp(folder.path);
  expect(readdirSync(folder.path)).toEqual([]);
});

test("a save refuses what has come into its way since, and leaves it", async () => {
  const temporary = precious("step-0000000002.tmp/a.txt");
  await expect(saveCheckpoint(folder.path, 2, contentsOf(2))).rejects.toThrow(/in the way/);
  const place = precious("step-0000000003/thesis.txt");
  const refused = saveCheckpoint(folder.path, 3, contentsOf(3));
  await expect(refused).rejects.toThrow(CheckpointError);
  for (const file of [temporary, place]) expect(readFileSync(file, "utf8")).toBe("precious");
  expect(readdirSync(folder.path).sort()).toEqual(["step-0000000002.tmp", "step-0000000003"]);
  const trash = precious(".trash/a.txt");
  await saveCheckpoint(folder.path, 4, contentsOf(4));
  await expect(discard(folder.path, "step-0000000004")).rejects.toThrow(/in the way/);
  expect(readFileSync(trash, "utf8")).toBe("precious");
  expect((await listCheckpoints(folder.path)).map(({ step }) => step)).toEqual([3, 4]);
});

test("retention deletes no folder of a checkpoint's name that holds none", async () => {
  const file = precious("step-0000000001/thesis.txt");
  for (const step of [2, 3, 4]) await saveCheckpoint(folder.path, step, contentsOf(step));
  expect(await applyRetention(folder.path, { keepLast: 2 })).toEqual([2]);
  expect(readFileSync(file, "utf8")).toBe("precious");
});

test("a run.lock that is no lock is not written over", () => {
  const file = precious("run.lock");
  expect(() => acquireRunLock(folder.path)).toThrow(/in the way/);
  expect(readFileSync(file, "utf8")).toBe("precious");
});

test.each([
  ["metrics.jsonl", '{"epoch":1,"loss":2.5}\n'],
  ["metrics.jsonl", "precious"],
  ["run.json", '{"runs":3}'],
  ["report.html", "<!doctype html><title>My report</title>"],
  ["data-verified.json", '{"mine":true}'],
])("%s of the user's (%j) stays, and the run does not start", async (name, text) => {
  const { data, folder: made } = await tinyData();
  const file = precious(name);
  writeFileSync(file, text);
  const config = tinyConfig(data, folder.path, { steps: 3 });
  const error = await Trainer.create(config).catch((reason: unknown) => reason);
  expect(error).toBeInstanceOf(UsageError);
  expect((error as Error).message).toContain(`${file} is in the way`);
  expect(readFileSync(file, "utf8")).toBe(text);
  expect(readdirSync(folder.path).sort()).toEqual([name, "run.lock"].sort());
  rmSync(made, { recursive: true, force: true });
});

test("the records of a run are its own: whole, torn by a crash, followed by zeros, or alone", async () => {
  const { data, folder: made } = await tinyData();
  const config = tinyConfig(data, folder.path, { steps: 3, checkpoint: { every: 0 } });
  const start = async () => {
    const trainer = await Trainer.create(config, { checkpoints: false });
    for await (const _ of trainer.run());
    await writeReport(folder.path);
    trainer.dispose();
  };
  await start();
  const names = ["run.json", "metrics.jsonl", "report.html", "data-verified.json"];
  const whole = names.map((name) => readFileSync(join(folder.path, name)));
  await start();
  for (const [index, name] of names.entries()) {
    for (const other of names) rmSync(join(folder.path, other), { force: true });
    writeFileSync(join(folder.path, name), whole[index] as Buffer);
    await refuseForeignRecords(folder.path);
  }
  const metrics = join(folder.path, "metrics.jsonl");
  const bytes = whole[1] as Buffer;
  for (const length of [0, 1, 4, 8, 9, 10, 12, 18, 20, 21, 60]) {
    for (const zeros of [0, 5000]) {
      writeFileSync(metrics, Buffer.concat([bytes.subarray(0, length), Buffer.alloc(zeros)]));
      await refuseForeignRecords(folder.path);
    }
  }
  rmSync(made, { recursive: true, force: true });
});

test("the probe of the output folder has a name that nobody else has", async () => {
  const file = precious(`.write-probe-${process.pid}`);
  await prepareOutputFolder(folder.path);
  expect(readFileSync(file, "utf8")).toBe("precious");
  expect(readdirSync(folder.path)).toHaveLength(1);
});

test("saveModel leaves what is at its temporary name", async () => {
  const file = precious("model.tmp/thesis.txt");
  const model = await Llama.create(
    llamaConfig({
      vocabSize: 32,
      contextLength: 8,
      layers: 1,
      hiddenSize: 16,
      heads: 2,
      kvHeads: 2,
      intermediateSize: 16,
      ropeTheta: 10_000,
      rmsNormEps: 1e-5,
      tieEmbeddings: false,
    }),
  );
  await expect(saveModel(join(folder.path, "model"), model)).rejects.toThrow(UsageError);
  model.dispose();
  expect(readFileSync(file, "utf8")).toBe("precious");
  expect(readdirSync(folder.path)).toEqual(["model.tmp"]);
});
