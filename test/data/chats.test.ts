/** Data sets of chats: prepared through the template, masked, packed, mixed, verified and resumed. */
import { readFile, rm, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import fc from "fast-check";
import { beforeAll, describe, expect, it } from "vitest";
import { ArgumentError, DataError } from "../../lib/core/errors.js";
import { readDatasetFile } from "../../lib/data/dataset-file.js";
import { makeBatch } from "../../lib/data/loader.js";
import { Mixture } from "../../lib/data/mixture.js";
import { packChats } from "../../lib/data/pack-chats.js";
import { TokenDataset } from "../../lib/data/shards.js";
import { Tokenizer } from "../../lib/data/tokenizer.js";
import { verifyDataset } from "../../lib/data/verify.js";
import { type PrepareOptions, prepare } from "../../lib/prepare/prepare.js";
import { cutNotes } from "../../lib/train/chat.js";
import { contentsOf, documents, quickstart, temporaryFolder, writeFiles } from "./support.js";

/** The template of TinyLlama-Chat, and the same with transformers' marks. */
const plain =
  "{% for m in messages %}{{ '<|' + m.role + '|>\n' }}{{ m.content + eos_token + '\n' }}{% endfor %}" +
  "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}";
const marked =
  "{%- for m in messages %}\n  {%- if m.role == 'assistant' %}{{ '<|assistant|>\n' }}{% generation %}\n" +
  "{{- m.content + eos_token }}{% endgeneration %}{{ '\n' }}{% else %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}" +
  "{%- endif %}\n{%- endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}";

let tokenizer: Tokenizer;
beforeAll(async () => {
  tokenizer = await Tokenizer.load(quickstart);
});

type Message = { role: string; content: string };

function chat(number: number, turns = 2): Message[] {
  return Array.from({ length: turns }, (_, turn): Message[] => [
    { role: "user", content: `Question ${number}.${turn}: 😀 what is ${number} plus ${turn}?` },
    { role: "assistant", content: `It is ${number + turn}, ${"indeed ".repeat(number % 4)}é 😀.` },
  ]).flat();
}

const lines = (records: readonly unknown[]) =>
  records.map((record) => `${JSON.stringify(record)}\n`).join("");

async function workplace(records: readonly unknown[], template = plain) {
  const folder = await temporaryFolder();
  await writeFiles(folder, { "in/chats.jsonl": lines(records), "template.jinja": template });
  const out = join(folder, "out");
  const run = (options: Partial<PrepareOptions> = {}) =>
    prepare({
      inputs: [{ path: join(folder, "in"), kind: "chat" }],
      out,
      tokenizer,
      chatTemplate: join(folder, "template.jinja"),
      validationFraction: 0,
      ...options,
    });
  return { folder, out, run };
}

/** All chats of a split as text, with the assistant's part of each. */
async function chatsOf(out: string) {
  const { splits } = await verifyDataset(out);
  const found: { text: string; counted: string }[] = [];
  for (const shard of splits.train.shards) {
    const [ids, index, mask] = (await Promise.all(
      [".bin", ".idx", ".mask"].map((end) => readFile(join(out, shard.file.replace(".bin", end)))),
    )) as [Buffer, Buffer, Buffer];
    for (let i = 0; i < shard.documents; i++) {
      const [start = 0, end = 0] = [i, i + 1].map((at) => Number(index.readBigUInt64LE(at * 8)));
      const places = Array.from({ length: end - start }, (_, at) => start + at);
      const textOf = (wanted: number[]) =>
        tokenizer.decode(
          wanted.map((at) => ids.readUInt16LE(at * 2)),
          { specialTokens: "keep" },
        );
      const counted = places.filter((at) => mask[at] === 1);
      found.push({ text: textOf(places), counted: textOf(counted) });
    }
  }
  return found;
}

describe("prepare of chats", () => {
  it.each([
    ["by prefix difference", plain, "</s>\n"],
    ["by the template's marks", marked, "</s>"],
  ])("counts the assistant's tokens alone, found %s", async (_, template, end) => {
    const records = [1, 2, 3].map((n) => ({ messages: chat(n), id: n }));
    const { out, run } = await workplace(records, template);
    const { dataset, warnings } = await run();
    expect(warnings).toEqual([]);
    const chats = await chatsOf(out);
    expect(chats.map(({ text }) => text)).toEqual(
      [1, 2, 3].map((n) =>
        chat(n)
          .map(({ role, content }) => `<|${role}|>\n${content}</s>\n`)
          .join(""),
      ),
    );
    expect(chats.map(({ counted }) => counted)).toEqual(
      [1, 2, 3].map((n) =>
        chat(n)
          .filter(({ role }) => role === "assistant")
          .map(({ content }) => content + end)
          .join(""),
      ),
    );
    expect(dataset).toMatchObject({ version: 2, chats: { endId: tokenizer.eosId } });
    expect(dataset.sources[0]).toMatchObject({ kind: "chat", documents: 3 });
    expect(await readFile(join(out, "chat_template.jinja"), "utf8")).toBe(template);
  });

  it("reads ShareGPT's conversations, system texts, parts of text and tools", async () => {
    const template =
      "{% if tools %}[tools {{ tools | length }}]{% endif %}{% for m in messages %}[{{ m.role }}]{{ m.content }}" +
      "{% for call in m.tool_calls or [] %}<{{ call.function.name }}>{% endfor %}{{ eos_token }}{% endfor %}" +
      "{% if add_generation_prompt %}[assistant]{% endif %}";
    const call = { type: "function", function: { name: "add", arguments: { a: 1 } } };
    const records = [
      {
        conversations: [
          { from: "human", value: "hi" },
          { from: "gpt", value: "ho" },
        ],
        system: "Be.",
      },
      {
        messages: [
          {
            role: "user",
            content: [
              { type: "text", text: "1 + 1" },
              { type: "text", text: "?" },
            ],
          },
          { role: "assistant", content: null, tool_calls: [call] },
          { role: "tool", content: "2", name: "add" },
          { role: "assistant", content: "Two." },
        ],
        tools: [{ type: "function", function: { name: "add" } }],
      },
    ];
    const { out, run } = await workplace(records, template);
    await run();
    expect(await chatsOf(out)).toEqual([
      { text: "[system]Be.</s>[user]hi</s>[assistant]ho</s>", counted: "ho</s>" },
      {
        text: "[tools 1][user]1 + 1?</s>[assistant]<add></s>[tool]2</s>[assistant]Two.</s>",
        counted: "<add></s>Two.</s>",
      },
    ]);
  });

  it.each([
    [{ text: "no chat" }, /record 0: no field messages or conversations; it has text/],
    [{ messages: [] }, /record 0: messages: a chat without messages/],
    [
      { messages: [{ role: "user", content: 3 }] },
      /messages\[0\]\.content: expected a text, got 3/,
    ],
    [{ messages: [{ content: "x" }] }, /messages\[0\]\.role: expected a role/],
    [
      { conversations: [{ from: "me", value: "x" }] },
      /conversations\[0\]\.from: expected one of human/,
    ],
    [
      { messages: [{ role: "user", content: "x" }] },
      /no message of the assistant, so nothing to learn from; correct it/,
    ],
    [{ messages: [...chat(1), { role: "user", content: "\uFDD0" }] }, /U\+FDD0/],
    [{ messages: chat(1), tools: 3 }, /tools: expected a list/],
    [{ messages: chat(1), tools: "add" }, /tools: expected a list of tools.*got "add"/],
  ])("refuses %j by name, or leaves it out", async (record, message) => {
    const { out, run } = await workplace([record, { messages: chat(1) }]);
    const refused = run();
    await expect(refused).rejects.toThrow(DataError);
    await expect(refused).rejects.toThrow(message);
    const { dataset } = await run({ badRecords: "skip", startOver: true });
    expect(dataset.sources[0]?.skipped?.bad).toBe(1);
    expect(await chatsOf(out)).toHaveLength(1);
  });

  it("says how to mark answers that a template writes in another way later", async () => {
    const forgetful =
      "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' and loop.last %}(think){% endif %}{{ m.content }}{% endfor %}";
    const { run } = await workplace([{ messages: chat(1) }], forgetful);
    await expect(run()).rejects.toThrow(/messages\[1\] cannot be told apart.*{% generation %}/);
  });

  it("refuses a template without chats, chats beside text, and a start of documents", async () => {
    const { folder, run } = await workplace([{ messages: chat(1) }]);
    const text = { path: join(folder, "template.jinja") };
    const both = [{ path: join(folder, "in"), kind: "chat" as const }, text];
    await expect(run({ inputs: both })).rejects.toThrow(
      /text, chats and preferences make different data sets/,
    );
    await expect(run({ inputs: [text] })).rejects.toThrow(/chatTemplate needs kind/);
    await expect(run({ documentStart: "bos" })).rejects.toThrow(ArgumentError);
    await expect(run({ chatTemplate: quickstart })).rejects.toThrow(/has no chat template/);
    const refusing = await workplace([{ messages: chat(1) }], "{{ raise_exception('no chats') }}");
    await expect(refusing.run()).rejects.toThrow(
      /the chat template of .*template\.jinja cannot write a question and its answer: .*no chats/,
    );
  });

  it("gives the same bytes after an interruption", async () => {
    const records = Array.from({ length: 60 }, (_, n) => ({ messages: chat(n) }));
    const { folder, out, run } = await workplace(records);
    await writeFiles(folder, { "more/chats.jsonl": lines(records.slice(7).reverse()) });
    const inputs = ["in", "more"].map((name) => ({
      path: join(folder, name),
      kind: "chat" as const,
    }));
    await run({ inputs, shardTokens: 400 });
    const whole = await contentsOf(out);
    await rm(out, { recursive: true });
    const stop = new AbortController();
    const onProgress = () => stop.abort();
    await expect(
      run({ inputs, shardTokens: 400, signal: stop.signal, onProgress }),
    ).rejects.toThrow(/abort/);
    const { resumedDocuments } = await run({ inputs, shardTokens: 400 });
    expect(resumedDocuments).toBe(60);
    expect(await contentsOf(out)).toEqual(whole);
    expect(Object.keys(whole).filter((name) => name.endsWith(".mask")).length).toBeGreaterThan(3);
  });
});

describe("windows of chats", () => {
  it("hold every chat once, whole, and never more ids than they have", () => {
    fc.assert(
      fc.property(
        fc
          .integer({ min: 1, max: 40 })
          .chain((size) =>
            fc.tuple(
              fc.constant(size),
              fc.array(fc.integer({ min: 1, max: size }), { minLength: 1, maxLength: 80 }),
            ),
          ),
        ([size, lengths]) => {
          const { order, starts } = packChats(Uint32Array.from(lengths), size);
          expect([...order].sort((a, b) => a - b)).toEqual(lengths.map((_, chat) => chat));
          const rooms = Array.from({ length: starts.length - 1 }, (_, window) =>
            [...order.subarray(starts[window], starts[window + 1])].reduce(
              (room, chat) => room - (lengths[chat] as number),
              size,
            ),
          );
          expect(Math.min(...rooms)).toBeGreaterThanOrEqual(0);
          // Best fit leaves no two windows half empty.
          expect(rooms.filter((room) => 2 * room >= size + 1).length).toBeLessThanOrEqual(1);
        },
      ),
    );
  });

  it("keep chats apart, count positions from each one's start, and pad", async () => {
    const { out, run } = await workplace([1, 2, 3].map((n) => ({ messages: chat(n, 1) })));
    await run();
    const sequenceLength = 200;
    const mixture = await Mixture.open(out, { sequenceLength });
    expect(mixture.windows).toBe(1);
    const rows = await mixture.readRows(0, 1);
    const batch = makeBatch(rows, 1, sequenceLength, {}, (row) => mixture.marksAt(row));
    const index = await readFile(join(out, "train-00000.idx"));
    const starts = [0, 1, 2, 3].map((at) => Number(index.readBigUInt64LE(at * 8)));
    const [mask, ids] = [
      await readFile(join(out, "train-00000.mask")),
      await readFile(join(out, "train-00000.bin")),
    ];
    const end = starts[3] as number;
    for (let t = 0; t < sequenceLength; t++) {
      const start = t < end ? starts.findLast((at) => at <= t) : t;
      expect(batch.firstKey?.[t]).toBe(start);
      expect(batch.positions?.[t]).toBe(t - (start as number));
      expect(batch.inputs[t]).toBe(t < end ? ids.readUInt16LE(2 * t) : tokenizer.eosId);
      const counts = t + 1 < end && mask[t + 1] === 1;
      expect(batch.targets[t]).toBe(counts ? ids.readUInt16LE(2 * t + 2) : -100);
    }
    await mixture.close();
  });

  it("tell how many chats are longer, and cut them", async () => {
    const { out, run } = await workplace([1, 2, 3].map((n) => ({ messages: chat(n, n) })));
    await run();
    const dataset = await TokenDataset.open(out, { sequenceLength: 90 });
    expect(dataset.chats?.cut.chats).toBe(2);
    expect(dataset.chats?.count).toBe(3);
    await dataset.close();
  });

  it("leave out chats of whose answers nothing would be left", async () => {
    const asked = (words: number) => [
      { role: "user", content: "peace and law ".repeat(words) },
      { role: "assistant", content: "Yes." },
    ];
    const records = [{ messages: chat(1, 1) }, { messages: asked(60) }];
    const { out, run } = await workplace(records);
    await run();
    const sequenceLength = 100;
    const mixture = await Mixture.open(out, { sequenceLength });
    const chats = mixture.sources[0]?.dataset.chats;
    expect(chats).toMatchObject({ count: 2, leftOut: 1, cut: { chats: 0, tokens: 0 } });
    expect(cutNotes(mixture)).toEqual([
      expect.stringMatching(/1 of 2 chats are left out: in a window of 100 tokens nothing would/),
    ]);
    for (let window = 0; window < mixture.windows; window++) {
      const rows = await mixture.readRows(window, 1);
      const { targets } = makeBatch(rows, 1, sequenceLength, {}, (row) => mixture.marksAt(row));
      expect(targets.some((target) => target !== -100)).toBe(true);
    }
    await mixture.close();
    const none = await workplace([{ messages: asked(60) }]);
    await none.run();
    await expect(Mixture.open(none.out, { sequenceLength })).rejects.toThrow(
      "no chat has an answer within a window of 100 tokens: lengthen the sequence",
    );
  });

  it("mix with text, whose targets all count", async () => {
    const { folder, out, run } = await workplace(
      Array.from({ length: 20 }, (_, n) => ({ messages: chat(n) })),
    );
    await run();
    await writeFiles(join(folder, "text"), documents(20));
    const text = join(folder, "text-out");
    await prepare({ inputs: [join(folder, "text")], out: text, tokenizer, validationFraction: 0 });
    const mixture = await Mixture.open({ [out]: 0.5, [text]: 0.5 }, { sequenceLength: 64 });
    const rows = await mixture.readRows(0, 8);
    const batch = makeBatch(rows, 8, 64, {}, (row) => mixture.marksAt(row));
    expect(rows.chats?.rows.filter(Boolean)).toHaveLength(4);
    for (const [row, holdsChats] of (rows.chats?.rows ?? []).entries()) {
      const targets = batch.targets.subarray(row * 64, (row + 1) * 64);
      expect(targets.includes(-100)).toBe(holdsChats);
      if (holdsChats) continue;
      expect([...(batch.firstKey?.subarray(row * 64, (row + 1) * 64) ?? [])]).toEqual(
        Array(64).fill(0),
      );
      expect(batch.positions?.[row * 64 + 63]).toBe(63);
    }
    await mixture.close();
  });

  it("are known by their masks too, and not mixed from two templates", async () => {
    const records = [1, 2, 3, 4].map((n) => ({ messages: chat(n) }));
    const [a, b] = [await workplace(records), await workplace(records, marked)];
    await a.run();
    await b.run();
    const [one, other] = [a, b].map(({ out }) => TokenDataset.open(out, { sequenceLength: 64 }));
    expect((await one)?.fingerprint).not.toBe((await other)?.fingerprint);
    await expect(Mixture.open({ [a.out]: 1, [b.out]: 1 }, { sequenceLength: 64 })).rejects.toThrow(
      /different chat templates/,
    );
  });

  it("name a mask that is damaged", async () => {
    const { out, run } = await workplace([1, 2].map((n) => ({ messages: chat(n) })));
    await run();
    const mask = join(out, "train-00000.mask");
    const bytes = await readFile(mask);
    const changed = Buffer.from(bytes);
    changed[0] = 1 - (changed[0] as number);
    await writeFile(mask, changed);
    await expect(verifyDataset(out)).rejects.toThrow(/train-00000\.mask has changed/);
    changed[0] = 7;
    await writeFile(mask, changed);
    const dataset = await TokenDataset.open(out, { sequenceLength: 400 });
    await expect(dataset.read(0, new Int32Array(401))).rejects.toThrow(/mask: byte 0 is 7/);
    await dataset.close();
    // The masks of longer chats are read at once.
    const short = TokenDataset.open(out, { sequenceLength: 64 });
    await expect(short).rejects.toThrow(/mask: byte 0 is 7/);
    await truncate(mask, 5);
    await expect(TokenDataset.open(out, { sequenceLength: 64 })).rejects.toThrow(
      /mask has 5 bytes/,
    );
    const json = await readDatasetFile(out);
    await writeFile(join(out, "dataset.json"), JSON.stringify({ ...json, version: 1 }));
    await expect(readDatasetFile(out)).rejects.toThrow(/chats: goes with version 2 alone/);
  });
});
