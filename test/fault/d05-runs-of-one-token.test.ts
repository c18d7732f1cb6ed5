// docs/faults.md, row D5: much of the data is one token, such as padding (TinyLlama's issue 83).
// `prepare` refuses it with the figure and the token, and a run on it reports it.
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { expect, test } from "vitest";
import { DataError } from "../../lib/core/errors.js";
import { prepare } from "../../lib/prepare/prepare.js";
import { Trainer } from "../../lib/train/trainer.js";
import { documents, quickstart, temporaryFolder, writeFiles } from "../data/support.js";
import { tinyConfig } from "../support/tiny-run.js";

async function open(data: string, out: string): Promise<string[]> {
  const notices: string[] = [];
  const onNotice = (message: string) => void notices.push(message);
  const trainer = await Trainer.create(tinyConfig(data, out), { onNotice });
  trainer.stop();
  for await (const _ of trainer.run());
  trainer.dispose();
  return notices.filter((notice) => notice.includes("stand in runs of one token"));
}

test("refused by prepare, and told by train where it was let through", async () => {
  const folder = await temporaryFolder();
  await writeFiles(join(folder, "in"), {
    ...documents(30),
    "padding.txt": "\0".repeat(1000),
  });
  const options = {
    inputs: [join(folder, "in")],
    out: join(folder, "out"),
    tokenizer: quickstart,
    validationFraction: 0,
  };
  const refused = prepare(options);
  await expect(refused).rejects.toBeInstanceOf(DataError);
  await expect(refused).rejects.toThrow(
    /\d\d\.\d% of the \d+ tokens of train-00000\.bin stand in runs of 32 or more of one token, most of all 3 \("<0x00>"\)/,
  );
  expect(await readdir(folder)).toEqual(["in"]);
  await prepare({ ...options, maxRunShare: 0.9 });
  const [notice, ...more] = await open(options.out, join(folder, "run"));
  expect(more).toEqual([]);
  const percent = Number(/: (\d+\.\d)% of the tokens/.exec(notice as string)?.[1]);
  expect(percent).toBeGreaterThan(20);
  expect(percent).toBeLessThan(70);
});

test("clean data is not spoken of", async () => {
  const folder = await temporaryFolder();
  await writeFiles(join(folder, "in"), documents(30));
  const out = join(folder, "out");
  await prepare({ inputs: [join(folder, "in")], out, tokenizer: quickstart });
  expect(await open(out, join(folder, "run"))).toEqual([]);
});
