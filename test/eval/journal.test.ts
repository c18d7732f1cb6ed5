// Finished tasks of a stopped evaluation: who may go on from them, and what a damaged one does.
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeEach, expect, test } from "vitest";
import { UsageError } from "../../lib/core/errors.js";
import { EvaluationJournal } from "../../lib/eval/journal.js";

const root = mkdtempSync(join(tmpdir(), "journal-"));
afterAll(() => rmSync(root, { recursive: true }));
let cases = 0;
let folder: string;
beforeEach(() => {
  folder = join(root, `${++cases}.unfinished`);
});

const identity = { model: "m", seed: "1" };
const task = {
  ...{ name: "__proto__", asked: "hash", questions: 1, fewShot: 0 },
  ...{ cut: { prompts: 0, tokens: 0 }, values: { none: [{ acc: 1 }] } },
};

test("a later call takes over the finished tasks", async () => {
  const first = await EvaluationJournal.open(folder, identity, false);
  await first.write(task);
  first.close();
  const second = await EvaluationJournal.open(folder, identity, false);
  expect([...second.stored.values()]).toEqual([task]);
  await second.remove();
  expect(readdirSync(root)).not.toContain(`${cases}.unfinished`);
});

test("two evaluations do not share a journal", async () => {
  const first = await EvaluationJournal.open(folder, identity, false);
  await first.write(task);
  for (const startOver of [false, true]) {
    const second = EvaluationJournal.open(folder, identity, startOver);
    await expect(second).rejects.toThrow(UsageError);
    await expect(second).rejects.toThrow(`process ${process.pid}`);
  }
  await first.write(task);
  first.close();
});

test("another evaluation's tasks are named, and discarded on demand", async () => {
  const first = await EvaluationJournal.open(folder, identity, false);
  await first.write(task);
  first.close();
  const other = { ...identity, seed: "2" };
  const refused = EvaluationJournal.open(folder, other, false);
  await expect(refused).rejects.toThrow("seed: 1 there, 2 now");
  const second = await EvaluationJournal.open(folder, other, true);
  expect(second.stored.size).toBe(0);
  second.close();
});

test("a damaged task is asked again", async () => {
  const first = await EvaluationJournal.open(folder, identity, false);
  await first.write(task);
  first.close();
  const [name] = readdirSync(folder).filter((entry) => entry.startsWith("task-"));
  writeFileSync(join(folder, name as string), '{"name":');
  const second = await EvaluationJournal.open(folder, identity, false);
  expect(second.stored.size).toBe(0);
  second.close();
});
