import { rm, truncate } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { DataError } from "../../lib/core/errors.js";
import { openHeldOut } from "../../lib/data/held-out.js";
import { prepare } from "../../lib/prepare/prepare.js";
import { documents, quickstart, temporaryFolder, writeFiles } from "./support.js";

/** Two data sets of different documents. The second has no held-out part. */
async function twoSets() {
  const folder = await temporaryFolder();
  const make = async (name: string, words: number, validationFraction: number) => {
    const input = join(folder, `${name}-in`);
    await writeFiles(input, documents(30, words));
    const out = join(folder, name);
    await prepare({ inputs: [input], out, tokenizer: quickstart, validationFraction });
    return out;
  };
  return { text: await make("text", 40, 0.3), code: await make("code", 50, 0) };
}

async function open(sources: Record<string, number>) {
  const notices: string[] = [];
  const mixture = await openHeldOut(sources, { sequenceLength: 8, seed: 1 }, (text) =>
    notices.push(text),
  );
  await mixture?.close();
  return { folders: mixture?.sources.map(({ folder }) => folder), notices };
}

describe("held-out documents", () => {
  it("are those of the data sets that have some", async () => {
    const { text, code } = await twoSets();
    expect(await open({ [text]: 0.7, [code]: 0.3 })).toEqual({
      folders: [text],
      notices: [expect.stringMatching(/^not in the validation loss: .*code holds no validation/)],
    });
    expect(await open({ [text]: 1 })).toEqual({ folders: [text], notices: [] });
    expect(await open({ [code]: 1 })).toEqual({
      folders: undefined,
      notices: [expect.stringMatching(/^no validation loss: .*code holds no validation/)],
    });
  });

  it("that are damaged or gone are an error, not a run without validation (docs/faults.md D1)", async () => {
    const { text, code } = await twoSets();
    const shard = join(text, "validation-00000.bin");
    await truncate(shard, 10);
    await expect(open({ [text]: 0.7, [code]: 0.3 })).rejects.toThrow(DataError);
    await expect(open({ [text]: 0.7, [code]: 0.3 })).rejects.toThrow(/validation-00000\.bin has 5/);
    await rm(shard);
    await expect(open({ [text]: 1 })).rejects.toThrow(/cannot read .*validation-00000\.bin/);
  });
});
