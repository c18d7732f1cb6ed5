import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { saveModel } from "../../lib/checkpoint/model.js";
import { ChatSession } from "../../lib/cli/chat-session.js";
import { Tokenizer } from "../../lib/data/tokenizer.js";
import { Engine } from "../../lib/generate/engine.js";
import { Llama } from "../../lib/model/llama.js";
import { llamaConfig } from "../../lib/model/llama-config.js";
import { buildLibrary, root } from "./build.js";
import { cliFile } from "./run.js";

const template =
  "{% for m in messages %}{% if m.role == 'poet' %}{{ raise_exception('no poets') }}{% endif %}" +
  "{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";

let folder: string;
let model: string;
let bare: string;
beforeAll(async () => {
  buildLibrary();
  folder = mkdtempSync(join(tmpdir(), "llamaforge-chat-"));
  [model, bare] = [join(folder, "model"), join(folder, "bare")];
  const tokenizer = await Tokenizer.load(join(root, "assets/quickstart"));
  const sizes = { hiddenSize: 32, intermediateSize: 48, layers: 1, heads: 2, kvHeads: 1 };
  const rest = { ropeTheta: 10_000, rmsNormEps: 1e-5, tieEmbeddings: false, contextLength: 128 };
  const made = await Llama.create(
    llamaConfig({ vocabSize: tokenizer.vocabSize, ...sizes, ...rest }),
    { seed: 2 },
  );
  for (const place of [model, bare]) {
    await saveModel(place, made, { tokenizer });
    await tokenizer.copyTo(place);
  }
  made.dispose();
  writeFileSync(join(model, "chat_template.jinja"), template);
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

async function chat(args: string[], input: string) {
  const child = spawn(process.execPath, [cliFile, "chat", ...args], { cwd: folder });
  let [stdout, stderr] = ["", ""];
  child.stdout.on("data", (chunk: Buffer) => {
    stdout += chunk;
  });
  child.stderr.on("data", (chunk: Buffer) => {
    stderr += chunk;
  });
  child.stdin.end(input);
  const [code] = (await once(child, "close")) as [number | null];
  return { code, stdout, stderr };
}

const few = ["--max-tokens", "5", "--temperature", "0"];

it("answers what comes through a pipe, with the messages so far, and without marks", async () => {
  const input =
    'Hello\n\n/system be kind\n"""\nline 1\n\n/line 3"""\nlong \\\nline\n/bad\n/save chat.json\n/save chat.json\n';
  const { code, stdout, stderr } = await chat([model, ...few], input);
  expect(code).toBe(0);
  const { messages } = JSON.parse(readFileSync(join(folder, "chat.json"), "utf8"));
  const answers = messages.filter(({ role }: { role: string }) => role === "assistant");
  expect(messages.map(({ role, content }: Record<string, string>) => [role, content])).toEqual([
    ["system", "be kind"],
    ["user", "Hello"],
    ["assistant", answers[0].content],
    ["user", "line 1\n\n/line 3"],
    ["assistant", answers[1].content],
    ["user", "long \nline"],
    ["assistant", answers[2].content],
  ]);
  for (const { content } of answers) expect(stdout).toContain(`${content.trimEnd()}\n`);
  expect(stdout).not.toContain("\u001b");
  expect(stdout).not.toContain("> ");
  expect(stderr).toMatch(
    /\/bad: expected \/system, .*\n.*chat\.json: a file of this name is there/,
  );
  // The last answer is the model's own to the text of the whole chat.
  using engine = await Engine.open(model);
  const ids = await engine.encodeChat(messages.slice(0, -1));
  const { text } = await engine.complete(ids, { maxTokens: 5, temperature: 0, n: 1 });
  expect(answers[2].content).toBe(text);
});

it("forgets at /reset, and leaves at /quit", async () => {
  const { code, stdout } = await chat([model, ...few], "Hello\n/reset\nHello\n/quit\nHello\n");
  expect(code).toBe(0);
  expect(stdout.slice(0, stdout.length / 2)).toBe(stdout.slice(stdout.length / 2));
});

it("goes on after a chat that the template refuses, and leaves out what has no room", async () => {
  const long = "many words of text ".repeat(6);
  const input = `${`${long}\n`.repeat(6)}`;
  const { code, stderr } = await chat([model, ...few], input);
  expect(code).toBe(0);
  expect(stderr).toMatch(/the oldest 2 messages have no room and were left out/);
  const refused = await chat([model, ...few], `${long.repeat(9)}\nHello\n/save after.json\n`);
  expect(refused.code).toBe(0);
  expect(refused.stderr).toMatch(/expected a message that leaves room in the 128 tokens/);
  const { messages } = JSON.parse(readFileSync(join(folder, "after.json"), "utf8"));
  expect(messages).toHaveLength(2);
});

it("tells what to do about a model without a template", async () => {
  const { code, stderr } = await chat([bare], "Hello\n");
  expect(code).toBe(3);
  expect(stderr).toMatch(/has no chat template: .* Give a template with --chat-template FILE/);
  const given = ["--chat-template", join(model, "chat_template.jinja")];
  const { stdout } = await chat([bare, ...given, ...few], "Hello\n");
  expect(stdout).toBe((await chat([model, ...few], "Hello\n")).stdout);
  expect(stdout.length).toBeGreaterThan(1);
});

it("keeps a stopped answer as far as it came", async () => {
  using engine = await Engine.open(model);
  const session = new ChatSession(engine, null, { seed: 1 });
  const abort = new AbortController();
  let seen = "";
  const { reason } = await session.answer("Hello", abort.signal, (text) => {
    seen += text;
    if (seen !== "") abort.abort();
  });
  expect(reason).toBe("stopped");
  expect(session.messages).toEqual([
    { role: "user", content: "Hello" },
    { role: "assistant", content: seen },
  ]);
  await session.answer("again", AbortSignal.abort(), () => {});
  expect(session.messages).toHaveLength(2);
});

it("has prompts and edited lines on a terminal, and leaves at a second Ctrl-C", async () => {
  const command = [process.execPath, cliFile, "chat", model, ...few].join(" ");
  const child = spawn("script", ["-qec", command, "/dev/null"], {
    cwd: folder,
    env: { ...process.env, SHELL: "/bin/sh", NO_COLOR: "1", TERM: "xterm" },
  });
  let shown = "";
  const until = async (text: string) => {
    while (!shown.includes(text)) {
      const [chunk] = (await once(child.stdout, "data")) as [Buffer];
      shown += chunk;
    }
    const end = shown.indexOf(text) + text.length;
    const before = shown.slice(0, end);
    shown = shown.slice(end);
    return before;
  };
  expect(await until("> ")).toContain("128 tokens of context");
  child.stdin.write("Hellp\u007fo\r");
  expect(await until("tokens/s")).toContain("Hell");
  await until("> ");
  child.stdin.write("half\u0003");
  await until("Ctrl-C again");
  await until("> ");
  child.stdin.write("\u0003");
  const [code] = (await once(child, "close")) as [number];
  expect(code).toBe(0);
}, 30_000);
