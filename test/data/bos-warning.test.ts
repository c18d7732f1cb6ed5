// The tokenizer puts a beginning-of-text token in front of texts, and the data has none.
import { cp, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, it } from "vitest";
import { prepare } from "../../lib/prepare/prepare.js";
import { documents, quickstart, temporaryFolder, writeFiles } from "./support.js";

const template = {
  type: "TemplateProcessing",
  single: [{ SpecialToken: { id: "<s>", type_id: 0 } }, { Sequence: { id: "A", type_id: 0 } }],
  pair: [{ Sequence: { id: "A", type_id: 0 } }, { Sequence: { id: "B", type_id: 1 } }],
  special_tokens: { "<s>": { id: "<s>", ids: [1], tokens: ["<s>"] } },
};

/** Prepares with changed tokenizer files and returns the warnings. */
async function warnings(tokenizerJson: object, config: object, options = {}): Promise<string> {
  const folder = await writeFiles(await temporaryFolder(), {});
  const tokenizer = join(folder, "tokenizer");
  await cp(quickstart, tokenizer, { recursive: true });
  for (const [name, change] of [
    ["tokenizer.json", tokenizerJson],
    ["tokenizer_config.json", config],
  ] as const) {
    const file = join(tokenizer, name);
    const json = { ...JSON.parse(await readFile(file, "utf8")), ...change };
    await writeFile(file, JSON.stringify(json));
  }
  await writeFiles(join(folder, "in"), documents(20));
  const inputs = [join(folder, "in")];
  const result = await prepare({
    inputs,
    out: join(folder, "out"),
    tokenizer,
    validationFraction: 0,
    ...options,
  });
  return result.warnings.join();
}

const unset = { add_bos_token: undefined };

it("is a warning with the option to set", async () => {
  const expected = /puts <s> in front of every text .*documentStart: "bos"/;
  expect(await warnings({ post_processor: template }, unset)).toMatch(expected);
  const sequence = { type: "Sequence", processors: [{ type: "ByteLevel" }, template] };
  expect(await warnings({ post_processor: sequence }, unset)).toMatch(expected);
  expect(await warnings({}, { add_bos_token: true })).toMatch(expected);
});

it("is none where documents start with it, or nothing puts it there", async () => {
  expect(await warnings({ post_processor: template }, unset, { documentStart: "bos" })).toBe("");
  expect(await warnings({ post_processor: template }, { add_bos_token: false })).toBe("");
  expect(await warnings({}, {})).toBe("");
});
