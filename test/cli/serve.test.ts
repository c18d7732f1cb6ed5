// `llamaforge serve` as a process: its start, its keys, and its end by signals.
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { saveModel } from "../../lib/checkpoint/model.js";
import { open, post, template, tinyModel } from "../serve/support.js";
import { buildLibrary } from "./build.js";
import { cliFile, llamaforge } from "./run.js";

let folder: string;
const children: ChildProcess[] = [];
beforeAll(async () => {
  buildLibrary();
  folder = await mkdtemp(join(tmpdir(), "serve-"));
  const [model, tokenizer] = await tinyModel(4096);
  await saveModel(join(folder, "tiny"), model, { tokenizer });
  model.dispose();
  await writeFile(join(folder, "chat.jinja"), template);
  await writeFile(join(folder, "keys"), "# two keys\nfrom-file\n\nother\n");
  await writeFile(join(folder, "empty"), "\n# none\n");
}, 120_000);
afterAll(async () => {
  for (const child of children) child.kill("SIGKILL");
  await rm(folder, { recursive: true, force: true });
});

/** Starts a server and waits for its address. */
async function start(args: string[], env: Record<string, string> = {}) {
  const child = spawn(process.execPath, [cliFile, "serve", join(folder, "tiny"), ...args], {
    env: { ...process.env, ...env },
  });
  children.push(child);
  const output = { text: "", errors: "" };
  child.stderr.on("data", (chunk) => {
    output.errors += chunk;
  });
  const ended = once(child, "exit") as Promise<[number | null, string | null]>;
  const url = await new Promise<string>((resolve, reject) => {
    child.stdout.on("data", (chunk) => {
      output.text += chunk;
      const [, found] = /at (http:\S+)\n/.exec(output.text) ?? [];
      if (found) resolve(found);
    });
    child.on("exit", () => reject(new Error(output.errors)));
  });
  return { child, url, output, ended };
}

test("serves with keys of all sources, and ends at SIGTERM after its answers", async () => {
  const args = ["--port", "0", "--api-key", "from-flag", "--api-key-file", join(folder, "keys")];
  args.push("--chat-template", join(folder, "chat.jinja"), "--max-batch", "4");
  const env = { LLAMAFORGE_API_KEYS: "from-env, another" };
  const { child, url, output, ended } = await start(args, env);
  expect(output.text).toContain("chats and texts");
  const messages = [{ role: "user", content: "a" }];
  for (const key of ["from-flag", "from-file", "other", "from-env", "another"]) {
    const { status, json } = await post(
      `${url}/v1/chat/completions`,
      { messages, max_tokens: 1, model: "tiny" },
      { authorization: `Bearer ${key}` },
    );
    expect(status, key).toBe(200);
    expect(json.model).toBe("tiny");
  }
  expect((await post(`${url}/tokenize`, { prompt: "a" })).status).toBe(401);
  const asked = fetch(`${url}/v1/completions`, {
    method: "POST",
    headers: { "content-type": "application/json", authorization: "Bearer other" },
    body: JSON.stringify({ prompt: "a", max_tokens: 200, ignore_eos: true, stream: true }),
  });
  const response = await asked;
  child.kill("SIGTERM");
  const text = await response.text();
  expect(text).toMatch(/"finish_reason":"length"[\s\S]*data: \[DONE\]\n\n$/);
  expect(await ended).toEqual([0, null]);
  expect(output.errors).toContain("SIGTERM");
}, 60_000);

test("ends at once at a second signal", async () => {
  const { child, url, output, ended } = await start(["--port", "0", "--host", "0.0.0.0"]);
  expect(output.errors).toContain("no API key is set");
  const local = url.replace("0.0.0.0", "127.0.0.1");
  const ask = { prompt: "a", max_tokens: 4000, ignore_eos: true, stream: true };
  const { response } = open(local, "/v1/completions", ask);
  const stream = await response;
  stream.on("error", () => {});
  stream.resume();
  child.kill("SIGINT");
  await new Promise((resolve) => setTimeout(resolve, 200));
  child.kill("SIGINT");
  expect(await ended).toEqual([130, null]);
}, 60_000);

test.each([
  [["--port", "70000"], "Expected an integer from 0 to 65535."],
  [["--api-key-file", "missing"], "ENOENT"],
  [["--api-key-file", "empty"], "expected API keys"],
  [["--host", "no such host"], "Expected an address"],
  [["--page-size", "33", "--port", "0"], "a multiple of 32"],
])(
  "%j is refused",
  async (args, message) => {
    const result = await llamaforge(["serve", "tiny", ...args], { cwd: folder });
    expect(result.stderr).toContain(message);
    expect(result.code).toBe(2);
  },
  60_000,
);
