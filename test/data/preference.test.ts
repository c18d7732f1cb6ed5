/** Data sets of preferences: prepared in TRL's forms, masked, packed in pairs, cut and verified. */
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { ArgumentError, DataError } from "../../lib/core/errors.js";
import { maskBits, readDatasetFile } from "../../lib/data/dataset-file.js";
import { makeBatch } from "../../lib/data/loader.js";
import { Mixture } from "../../lib/data/mixture.js";
import { Tokenizer } from "../../lib/data/tokenizer.js";
import { verifyDataset } from "../../lib/data/verify.js";
import { type PrepareOptions, prepare } from "../../lib/prepare/prepare.js";
import { quickstart, temporaryFolder, writeFiles } from "./support.js";

const template =
  "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}" +
  "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}";

let tokenizer: Tokenizer;
beforeAll(async () => {
  tokenizer = await Tokenizer.load(quickstart);
});

const said = (role: string, content: string) => ({ role, content });

async function workplace(records: readonly unknown[], options: Partial<PrepareOptions> = {}) {
  const folder = await temporaryFolder();
  const lines = records.map((record) => `${JSON.stringify(record)}\n`).join("");
  await writeFiles(folder, { "in/pairs.jsonl": lines, "template.jinja": template });
  const out = join(folder, "out");
  const run = (more: Partial<PrepareOptions> = {}) =>
    prepare({
      inputs: [{ path: join(folder, "in"), kind: "preference" }],
      out,
      tokenizer,
      validationFraction: 0,
      maxRunShare: 1,
      ...options,
      ...more,
    });
  return { folder, out, run, chatTemplate: join(folder, "template.jinja") };
}

interface Half {
  text: string;
  counted: string;
}

/** The halves of all pairs of the training split as text, each with what the loss counts. */
async function pairsOf(out: string): Promise<[Half, Half][]> {
  const { splits } = await verifyDataset(out);
  const found: [Half, Half][] = [];
  for (const { file, documents } of splits.train.shards) {
    const [ids, index, mask] = (await Promise.all(
      [".bin", ".idx", ".mask"].map((end) => readFile(join(out, file.replace(".bin", end)))),
    )) as [Buffer, Buffer, Buffer];
    for (let i = 0; i < documents; i++) {
      const [start = 0, end = 0] = [i, i + 1].map((at) => Number(index.readBigUInt64LE(at * 8)));
      const places = Array.from({ length: end - start }, (_, at) => start + at);
      const textOf = (wanted: number[]) =>
        tokenizer.decode(
          wanted.map((at) => ids.readUInt16LE(at * 2)),
          { specialTokens: "keep" },
        );
      const half = (rejected: number): Half => {
        const own = places.filter((at) => (mask[at]! & maskBits.rejected) === rejected);
        const counted = own.filter((at) => (mask[at]! & maskBits.counted) !== 0);
        return { text: textOf(own), counted: textOf(counted) };
      };
      found.push([half(0), half(maskBits.rejected)]);
    }
  }
  return found;
}

describe("prepare of preferences", () => {
  it.each([
    [
      "a prompt and two texts",
      { prompt: "Say it:", chosen: " It is so.", rejected: " No, never." },
      ["Say it:", " It is so.", " No, never."],
    ],
    [
      "two whole texts, whose beginning is the prompt",
      { chosen: "Human: hi\nBot: It is so.", rejected: "Human: hi\nBot: No." },
      ["Human: hi\nBot:", " It is so.", " No."],
    ],
    [
      "an answer that ends with the end token already",
      { prompt: "Say it:", chosen: " It is so.</s>", rejected: " No." },
      ["Say it:", " It is so.", " No."],
    ],
  ])("reads %s", async (_, record, [prompt, chosen, rejected]) => {
    const { out, run } = await workplace([record]);
    const { dataset, warnings } = await run();
    expect(warnings).toEqual([]);
    expect(await pairsOf(out)).toEqual([
      [chosen, rejected].map((answer) => ({
        text: `${prompt}${answer}</s>`,
        counted: `${answer}</s>`,
      })),
    ]);
    expect(dataset).toMatchObject({
      version: 3,
      documentEnd: "none",
      pairs: { templateSha256: null, endId: tokenizer.eosId },
    });
    expect(dataset.sources[0]).toMatchObject({ kind: "preference", documents: 1 });
  });

  it.each([
    [
      "a prompt of messages and two answers",
      {
        prompt: [said("system", "Be kind."), said("user", "Hello?")],
        chosen: [said("assistant", "Hello!")],
        rejected: [said("assistant", "What?")],
      },
    ],
    [
      "two whole chats beside a prompt as text, as UltraFeedback has them",
      {
        prompt: "Hello?",
        system: "Be kind.",
        chosen: [said("user", "Hello?"), said("assistant", "Hello!")],
        rejected: [said("user", "Hello?"), said("assistant", "What?")],
      },
    ],
    [
      "two whole chats",
      {
        chosen: [said("system", "Be kind."), said("user", "Hello?"), said("assistant", "Hello!")],
        rejected: [said("system", "Be kind."), said("user", "Hello?"), said("assistant", "What?")],
      },
    ],
    [
      "ShareGPT's speakers, and a prompt as text beside answers alone",
      {
        prompt: "Hello?",
        system: "Be kind.",
        chosen: [{ from: "gpt", value: "Hello!" }],
        rejected: [{ from: "gpt", value: "What?" }],
      },
    ],
  ])("reads %s, through the template", async (_, record) => {
    const { out, run, chatTemplate } = await workplace([record]);
    const { dataset } = await run({ chatTemplate });
    const prompt = "<|system|>\nBe kind.</s>\n<|user|>\nHello?</s>\n<|assistant|>\n";
    expect(await pairsOf(out)).toEqual([
      ["Hello!", "What?"].map((answer) => ({
        text: `${prompt}${answer}</s>\n`,
        counted: `${answer}</s>\n`,
      })),
    ]);
    expect(dataset.pairs?.templateSha256).toMatch(/^[0-9a-f]{64}$/);
    expect(await readFile(join(out, "chat_template.jinja"), "utf8")).toBe(template);
  });

  it.each([
    [{ chosen: "a" }, /record 0: no field rejected; it has chosen/],
    [{ prompt: "p", chosen: "a", rejected: 3 }, /chosen and rejected: expected two texts, or two/],
    [{ prompt: 3, chosen: "a", rejected: "b" }, /prompt: expected a text/],
    [{ chosen: "same", rejected: "same" }, /no prompt, and chosen equals rejected/],
    [{ chosen: "this", rejected: "other" }, /no beginning in common/],
    [
      { prompt: "p", chosen: "a", rejected: "a" },
      /chosen equals rejected, so neither is preferred/,
    ],
    [
      {
        prompt: [said("user", "a")],
        chosen: [said("assistant", "b")],
        rejected: [said("assistant", "b")],
      },
      /chosen equals rejected/,
    ],
    [
      {
        prompt: [said("user", "a")],
        chosen: [said("assistant", "b")],
        rejected: [said("user", "c")],
      },
      /rejected: expected a message of the assistant after the prompt, got user/,
    ],
    [
      { chosen: [said("user", "a"), said("assistant", "b")], rejected: [said("assistant", "c")] },
      /no prompt: chosen and rejected begin with different messages/,
    ],
    [
      { prompt: [said("user", "a")], chosen: [{ role: "assistant" }], rejected: [] },
      /chosen\[0\]\.content: expected a text/,
    ],
  ])("refuses %j by its fields", async (record, message) => {
    const { run } = await workplace([record]);
    await expect(run()).rejects.toThrow(DataError);
    await expect(run()).rejects.toThrow(message);
  });

  it("leaves bad records out when told to, and takes one kind of records only", async () => {
    const good = { prompt: "Say it:", chosen: "Yes.", rejected: "No." };
    const chat = { prompt: [said("user", "a")], chosen: [said("assistant", "b")] };
    const messages = { ...chat, rejected: [said("assistant", "c")] };
    const { out, run, chatTemplate } = await workplace([{ chosen: "a" }, good, messages]);
    const { dataset } = await run({ badRecords: "skip" });
    expect(dataset.sources[0]).toMatchObject({ documents: 1, skipped: { bad: 2 } });
    expect(await pairsOf(out)).toHaveLength(1);
    await expect(run()).rejects.toThrow(/no field rejected/);
    const mixed = await workplace([good, messages]);
    await expect(mixed.run()).rejects.toThrow(/record 1: the first record holds texts, this one/);
    await expect(mixed.run({ chatTemplate })).rejects.toThrow(ArgumentError);
    await expect(mixed.run({ chatTemplate })).rejects.toThrow(/plain texts: leave it out/);
    const field = { path: join(mixed.folder, "in"), kind: "preference", textField: "x" } as const;
    await expect(mixed.run({ inputs: [field] })).rejects.toThrow(/fields prompt, chosen, rejected/);
    const both = [field.path, { path: field.path, kind: "preference" as const }];
    await expect(mixed.run({ inputs: both })).rejects.toThrow(/make different data sets/);
  });

  it("holds pairs out whole", async () => {
    const records = Array.from({ length: 60 }, (_, n) => ({
      prompt: `Number ${n}? `,
      chosen: `It is ${n}. ${"Indeed. ".repeat(n % 5)}`,
      rejected: `It is ${n + 1}, 😀 perhaps.`,
    }));
    const { out, run } = await workplace(records);
    const { dataset } = await run({ validationFraction: 0.2 });
    const { train, validation } = dataset.splits;
    expect(train.documents + validation.documents).toBe(60);
    expect(validation.documents).toBeGreaterThan(3);
    const counted = (await pairsOf(out)).flat().reduce((sum, half) => sum + half.counted.length, 0);
    expect(counted).toBeGreaterThan(60 * 10);
    const again = await readDatasetFile(out);
    expect(again.splits).toEqual(dataset.splits);
  });
});

describe("windows of pairs", () => {
  /** A data set of pairs with answers of these numbers of words. */
  async function open(sizes: readonly (readonly [number, number])[], sequenceLength: number) {
    const words = (n: number, word: string) => Array.from({ length: n }, () => word).join(" ");
    const { out, run } = await workplace(
      sizes.map(([chosen, rejected], n) => ({
        prompt: `Say ${n}: `,
        chosen: words(chosen, "yes"),
        rejected: words(rejected, "no"),
      })),
    );
    await run();
    return await Mixture.open(out, { sequenceLength });
  }

  it("keep both answers of a pair together, apart from each other, and number them", async () => {
    const sizes = [
      [3, 9],
      [8, 2],
      [5, 5],
      [1, 1],
    ] as const;
    const sequenceLength = 64;
    const mixture = await open(sizes, sequenceLength);
    expect(mixture.chats).toMatchObject({ pairs: true, count: 4, leftOut: 0, template: null });
    const count = mixture.windows;
    const rows = await mixture.readRows(0, count);
    const batch = makeBatch(rows, count, sequenceLength, {}, (row) => mixture.marksAt(row));
    expect(batch.pairs).toBe(4);
    const { inputs, targets, answers, firstKey, positions } = batch;
    const texts = new Map<number, number[]>();
    for (const [place, target] of targets.entries()) {
      const row = Math.floor(place / sequenceLength);
      const t = place % sequenceLength;
      expect(positions![place]).toBe(t - firstKey![place]!);
      if (target === -100) continue;
      const answer = answers![place] as number;
      texts.set(answer, [...(texts.get(answer) ?? []), target]);
      // A half sees its own prompt, from its first token on.
      const start = row * sequenceLength + firstKey![place]!;
      expect(tokenizer.decode([...inputs.slice(start, place + 1)])).toMatch(/^ ?Say \d/);
    }
    const answersOf = [...texts.entries()].sort(([a], [b]) => a - b);
    expect(answersOf.map(([number]) => number)).toEqual([0, 1, 2, 3, 4, 5, 6, 7]);
    const words = answersOf.map(([, ids]) => tokenizer.decode(ids).trim().split(" "));
    expect(words.map((list) => list[0]).slice(0, 2)).toEqual(["yes", "no"]);
    const counts = words.map((list) => list.length);
    const pairs = [0, 1, 2, 3].map((k) => counts.slice(2 * k, 2 * k + 2));
    expect(pairs.sort()).toEqual(sizes.map((pair) => [...pair]).sort());
    await mixture.close();
  });

  it("cut both answers at one length, and leave out pairs of which nothing would be left", async () => {
    const mixture = await open(
      [
        [40, 40],
        [2, 60],
        [1, 1],
      ],
      31,
    );
    const chats = mixture.chats;
    expect(chats).toMatchObject({ count: 3, leftOut: 0 });
    expect(chats?.cut.chats).toBe(2);
    const rows = await mixture.readRows(0, mixture.windows);
    const { mask } = rows.chats!;
    for (let row = 0; row < mixture.windows; row++) {
      const own = mask.subarray(row * 32, (row + 1) * 32);
      const sizes = [1, 3].map((bits) => own.filter((one) => one === bits).length);
      expect(Math.min(...sizes)).toBeGreaterThan(0);
    }
    await mixture.close();
    const long = await workplace([
      { prompt: "word ".repeat(40), chosen: "yes", rejected: "no" },
      { prompt: "Say: ", chosen: "yes", rejected: "no" },
    ]);
    await long.run();
    const some = await Mixture.open(long.out, { sequenceLength: 31 });
    expect(some.chats).toMatchObject({ count: 2, leftOut: 1 });
    expect(some.windows).toBe(1);
    await some.close();
    await expect(Mixture.open(long.out, { sequenceLength: 4 })).rejects.toThrow(
      /no pair fits a window of 4 tokens/,
    );
  });

  it("hold answers no longer than the model's context, in windows that may be longer", async () => {
    const words = (n: number) => Array.from({ length: n }, () => "yes").join(" ");
    const pair = { prompt: "Say: ", chosen: words(20), rejected: words(3) };
    const { out, run } = await workplace([pair]);
    await run();
    const [whole, limited] = [
      await Mixture.open(out, { sequenceLength: 63 }),
      await Mixture.open(out, { sequenceLength: 63, contextLength: 24 }),
    ];
    expect(whole.chats?.cut.chats).toBe(0);
    expect(limited.chats?.cut.chats).toBe(1);
    const { ids, chats } = await limited.readRows(0, 1);
    const batch = makeBatch({ ids, chats: chats! }, 1, 63, {}, () => limited.marksAt(0));
    expect(Math.max(...batch.positions!)).toBeLessThan(24);
    expect(batch.targets.filter((id) => id !== -100).length).toBeGreaterThan(20);
    await whole.close();
    await limited.close();
  });

  it("are not mixed with text", async () => {
    const { out, run, folder } = await workplace([{ prompt: "p ", chosen: "a", rejected: "b" }]);
    await run();
    await writeFile(join(folder, "plain.txt"), "Some text. ".repeat(40));
    const text = join(folder, "text");
    await prepare({ inputs: [join(folder, "plain.txt")], out: text, tokenizer });
    const sources = { [out]: 1, [text]: 1 };
    await expect(Mixture.open(sources, { sequenceLength: 16 })).rejects.toThrow(
      /holds preferences and .*text does not/,
    );
  });
});

it("records read as text are an error that names the kind that reads them", async () => {
  const pair = { prompt: "p", chosen: "a", rejected: "b" };
  for (const [record, kind] of [
    [pair, "preference"],
    [{ messages: [said("user", "a")] }, "chat"],
  ] as const) {
    const { folder, run } = await workplace([record]);
    const inputs = [{ path: join(folder, "in"), kind: "records" as const }];
    await expect(run({ inputs })).rejects.toThrow(`kind: "${kind}" reads such records`);
  }
});
