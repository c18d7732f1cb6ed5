// docs/faults.md, row D3: data that is changed, cut, reordered or extended between two sessions of
// a run ends with exit code 3 before the first step, unless the caller allows it.
import { cp, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { listCheckpoints } from "../../lib/checkpoint/folder.js";
import { DataError } from "../../lib/core/errors.js";
import { prepare } from "../../lib/prepare/prepare.js";
import { Trainer } from "../../lib/train/trainer.js";
import { buildLibrary } from "../cli/build.js";
import { documents, quickstart, writeFiles } from "../data/support.js";
import { train, writeConfig } from "../support/child-run.js";
import { tinyConfig, tinyData } from "../support/tiny-run.js";

let folder: string;
let original: string;
let out: string;

async function prepared(name: string, texts: Record<string, string>): Promise<string> {
  const out = join(folder, name);
  await writeFiles(join(folder, `${name}-texts`), texts);
  await prepare({
    inputs: [join(folder, `${name}-texts`)],
    out,
    tokenizer: quickstart,
    shardTokens: 1500,
    validationFraction: 0,
  });
  return out;
}

beforeAll(async () => {
  buildLibrary();
  ({ folder } = await tinyData());
  original = await prepared("original", documents(40));
  out = join(folder, "run");
  const first = await Trainer.create(tinyConfig(original, out, { steps: 6 }));
  for await (const _ of first.run());
  first.dispose();
});
afterAll(() => rm(folder, { recursive: true, force: true }));

/** Opens the run with other data and closes it without a step. */
async function resumeWith(data: Record<string, number>, allowDataChange = false) {
  const notices: string[] = [];
  const config = tinyConfig("", out, { data: { train: data } });
  const onNotice = (message: string) => void notices.push(message);
  const trainer = await Trainer.create(config, { allowDataChange, onNotice });
  trainer.stop();
  for await (const _ of trainer.run());
  const { startStep } = trainer;
  trainer.dispose();
  return { startStep, notices: notices.join("\n") };
}

const [[firstName, firstText], ...rest] = Object.entries(documents(40)) as [
  [string, string],
  ...[string, string][],
];
const others = Object.fromEntries(rest);
const changes: [string, () => Promise<string>][] = [
  ["a word changed", () => prepared("changed", { ...others, [firstName]: `${firstText}!` })],
  ["a document removed", () => prepared("removed", others)],
  ["a document added", () => prepared("added", { ...documents(40), "zz.txt": "One more." })],
  [
    "two shards exchanged",
    async () => {
      const data = join(folder, "exchanged");
      await cp(original, data, { recursive: true });
      const file = join(data, "dataset.json");
      const json = JSON.parse(await readFile(file, "utf8"));
      const { shards } = json.splits.train;
      const [one, two] = [{ ...shards[0] }, { ...shards[1] }];
      shards[0] = { ...two, file: one.file };
      shards[1] = { ...one, file: two.file };
      await writeFile(file, JSON.stringify(json));
      for (const end of [".bin", ".idx"]) {
        const names = [one, two].map((shard) => join(data, shard.file.replace(".bin", end)));
        const [first, second] = await Promise.all(names.map((name) => readFile(name)));
        await writeFile(names[0] as string, second as Buffer);
        await writeFile(names[1] as string, first as Buffer);
      }
      return data;
    },
  ],
];

test.each(changes)("%s", async (_, change) => {
  const data = await change();
  const refused = resumeWith({ [data]: 1 });
  await expect(refused).rejects.toBeInstanceOf(DataError);
  await expect(refused).rejects.toMatchObject({ exitCode: 3 });
  await expect(refused).rejects.toThrow(/was trained on other data .*--allow-data-change/);
  const { startStep, notices } = await resumeWith({ [data]: 1 }, true);
  expect(startStep).toBe(6);
  expect(notices).toContain("some windows will be repeated and others left out");
  // The refused start wrote nothing.
  expect((await listCheckpoints(out)).at(-1)?.step).toBe(6);
});

test("the same data in another folder, or prepared again, is the same data", async () => {
  const again = await prepared("again", documents(40));
  const { startStep, notices } = await resumeWith({ [again]: 1 });
  expect(startStep).toBe(6);
  expect(notices).not.toContain("other data");
});

test("the command line says it with 3, and goes on when told to", async () => {
  const data = join(folder, "removed");
  const place = { folder, data };
  const { file } = await writeConfig(place, "run", { evaluate: { every: 0 }, steps: 8 });
  const refused = await train(file).ended;
  expect(refused.stderr).toContain("was trained on other data");
  expect(refused.code).toBe(3);
  const allowed = await train(file, ["--allow-data-change"]).ended;
  expect(allowed.stderr).toContain("some windows will be repeated");
  expect(allowed.code).toBe(0);
}, 120_000);
