import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { ArgumentError, TokenizerError } from "../../lib/core/errors.js";
import { Tokenizer } from "../../lib/data/tokenizer.js";
import { ChatTemplate } from "../../lib/generate/chat-template.js";
import { endTokens } from "../../lib/generate/end-tokens.js";
import { strftime } from "../../lib/generate/strftime.js";

// The texts of fixtures/chat-templates.json are those of transformers 5.18, by
// tokenizer.apply_chat_template(messages, chat_template=..., tokenize=False).

const fixtures = join(dirname(fileURLToPath(import.meta.url)), "fixtures");
let folder: string;
let tokenizer: Tokenizer;

/** A folder with a tokenizer and files beside it. */
async function folderWith(files: Record<string, unknown>): Promise<string> {
  const place = await mkdtemp(join(folder, "model-"));
  await tokenizer.copyTo(place);
  for (const [name, contents] of Object.entries(files)) {
    const text = typeof contents === "string" ? contents : JSON.stringify(contents);
    await writeFile(join(place, name), text);
  }
  return place;
}

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "llamaforge-chat-"));
  tokenizer = await Tokenizer.load("test/data/fixtures/llama2");
});
afterAll(() => rm(folder, { recursive: true, force: true }));

test("texts and refusals are those of transformers", async () => {
  const file = join(fixtures, "chat-templates.json");
  const { templates, cases } = JSON.parse(await readFile(file, "utf8"));
  expect(cases.length).toBe(36);
  for (const { template, messages, addGenerationPrompt, text, refused } of cases) {
    const made = ChatTemplate.of(templates[template], tokenizer);
    const render = () => made.render(messages, { addGenerationPrompt });
    if (refused) expect(render).toThrow(refused);
    else expect(render()).toBe(text);
  }
});

describe("a template is found", () => {
  const user = [{ role: "user", content: "a" }];
  const textOf = async (files: Record<string, unknown>) =>
    (await ChatTemplate.load(await folderWith(files), tokenizer)).render(user);

  test("in chat_template.jinja, before tokenizer_config.json", async () => {
    const config = { "tokenizer_config.json": { chat_template: "config" } };
    expect(await textOf(config)).toBe("config");
    expect(await textOf({ ...config, "chat_template.jinja": "file" })).toBe("file");
  });

  test("among named ones, as the default", async () => {
    const named = (...names: string[]) => ({
      "tokenizer_config.json": {
        chat_template: names.map((name) => ({ name, template: `is ${name}` })),
      },
    });
    expect(await textOf(named("tool_use", "default"))).toBe("is default");
    await expect(textOf(named("tool_use", "rag"))).rejects.toThrow(
      /named "default", got tool_use, rag/,
    );
  });

  test("or its lack is told, with what to do", async () => {
    const place = await folderWith({ "tokenizer_config.json": {} });
    expect(await ChatTemplate.find(place, tokenizer)).toBeNull();
    await expect(ChatTemplate.load(place, tokenizer)).rejects.toThrow(TokenizerError);
    await expect(ChatTemplate.load(place, tokenizer)).rejects.toThrow(
      /has no chat template: .*--chat-template FILE/,
    );
    await expect(ChatTemplate.load(join(place, "none"), tokenizer)).rejects.toThrow(TokenizerError);
  });

  test.each<[string, Record<string, unknown>, RegExp]>([
    [
      "broken Jinja",
      { "chat_template.jinja": "{% for %}" },
      /chat_template.jinja: .*not valid Jinja/,
    ],
    ["a number", { "tokenizer_config.json": { chat_template: 5 } }, /expected chat_template to be/],
    ["an unknown filter", { "chat_template.jinja": "{{ 'a' | nope }}" }, /the chat template fails/],
  ])("and refused: %s", async (_, files, message) => {
    await expect(textOf(files)).rejects.toThrow(TokenizerError);
    await expect(textOf(files)).rejects.toThrow(message);
  });
});

test("special tokens have the names of the tokenizer's files, and null is none", async () => {
  const source = "[{{ bos_token }}{{ eos_token }}{{ pad_token }}]";
  const render = async (config: object) => {
    const place = await folderWith({ "tokenizer_config.json": config });
    return ChatTemplate.of(source, await Tokenizer.load(place)).render([
      { role: "user", content: "" },
    ]);
  };
  expect(await render({})).toBe("[<s></s>]");
  expect(await render({ bos_token: null, pad_token: { content: "<unk>" } })).toBe("[</s><unk>]");
});

test("a message that is wrong is named", () => {
  const template = ChatTemplate.of("x", tokenizer);
  const good = { role: "user", content: "a" };
  for (const [messages, message] of [
    ["text", /an array of \{ role, content \} for messages/],
    [[], /at least one message/],
    [[good, null], /for messages\[1\]/],
    [[good, { role: "", content: "a" }], /messages\[1\].role but received ""/],
    [[{ role: "user" }], /a string for messages\[0\].content but received undefined/],
    [[good, { role: "user", content: ["a"] }], /messages\[1\].content/],
    [[{ ...good, tool_calls: [] }], /messages\[0\], got "tool_calls"; tools are not supported/],
    [[{ ...good, name: 5 }], /messages\[0\].name/],
  ] as const) {
    expect(() => template.render(messages as never)).toThrow(ArgumentError);
    expect(() => template.render(messages as never)).toThrow(message);
  }
  expect(() => template.render([good], { tools: [] } as never)).toThrow(/tools are not supported/);
  expect(() => template.render([good], { addGenerationPromt: true } as never)).toThrow(
    /addGenerationPromt/,
  );
});

test("variables reach the template", () => {
  const template = ChatTemplate.of("{{ enable_thinking }}-{{ strftime_now('%Y') }}", tokenizer);
  const variables = { enable_thinking: "yes" };
  expect(template.render([{ role: "user", content: "" }], { variables })).toBe(
    `yes-${new Date().getFullYear()}`,
  );
});

test("dates are written as by Python in the C locale", () => {
  const date = new Date(2024, 6, 4, 15, 5, 9);
  expect(strftime(date, "%d %b %Y|%A, %B %-d|%I:%M %p|%j|%y/%m/%d|%F %T|%%d|%Q|%e|%a %w %u")).toBe(
    "04 Jul 2024|Thursday, July 4|03:05 PM|186|24/07/04|2024-07-04 15:05:09|%d|%Q| 4|Thu 4 4",
  );
});

test("end tokens come from both configurations, as an id or a list", async () => {
  expect(await endTokens(await folderWith({}))).toEqual([]);
  const files = {
    "generation_config.json": { eos_token_id: [7, 9] },
    "config.json": { eos_token_id: 7 },
  };
  expect(await endTokens(await folderWith(files))).toEqual([7, 9]);
  const wrong = await folderWith({ "config.json": { eos_token_id: ["x"] } });
  await expect(endTokens(wrong)).rejects.toThrow(
    /config.json: expected eos_token_id to be a token/,
  );
});
