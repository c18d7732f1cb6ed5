/** The examples of engines: a pool of workers, and a command line of 20 lines. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { afterAll, beforeAll, expect, test } from "vitest";
import { openPool } from "../../examples/worker-pool.js";
import { saveModel } from "../../lib/checkpoint/model.js";
import { Tokenizer } from "../../lib/data/tokenizer.js";
import { Engine } from "../../lib/generate/engine.js";
import { Llama } from "../../lib/model/llama.js";
import { buildLibrary, root } from "../cli/build.js";
import { tinyConfig } from "../support/tiny-run.js";

let folder: string;
beforeAll(async () => {
  buildLibrary();
  folder = mkdtempSync(join(tmpdir(), "llamaforge-engines-"));
  const tokenizer = await Tokenizer.load(join(root, "assets/quickstart"));
  const model = await Llama.create(tinyConfig("data", "run").model, { seed: 1 });
  await saveModel(folder, model, { tokenizer });
  await tokenizer.copyTo(folder);
  model.dispose();
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const prompts = ["The senate", "a", "My fellow citizens,", "x = 1", "", "War"];

test("a pool of workers gives each request's own answer, from all of its workers", async () => {
  const library = pathToFileURL(join(root, "dist/index.js")).href;
  const pool = await openPool(folder, ["cpu", "cpu"], library);
  using engine = await Engine.open(folder);
  const options = { maxTokens: 8, seed: 3 };
  const answers = await Promise.all(prompts.map((prompt) => pool.complete(prompt, options)));
  for (const [i, prompt] of prompts.entries()) {
    const { text, finishReason } = await engine.complete(prompt, { ...options, n: 1 });
    expect(answers[i]).toMatchObject({ text, finishReason });
  }
  expect(new Set(answers.map(({ worker }) => worker))).toEqual(new Set([0, 1]));
  await expect(pool.complete("a", { temperature: -1 })).rejects.toThrow(/temperature/);
  await pool.close();
  await expect(openPool(join(folder, "none"), ["cpu"], library)).rejects.toThrow(/none/);
}, 60_000);

test("the command line of 20 lines answers a prompt a line, in their order", async () => {
  const child = spawn(process.execPath, [join(root, "examples/complete.mjs"), folder]);
  let [stdout, stderr] = ["", ""];
  child.stdout.on("data", (chunk: Buffer) => {
    stdout += chunk;
  });
  child.stderr.on("data", (chunk: Buffer) => {
    stderr += chunk;
  });
  child.stdin.end(`${prompts.join("\n")}\n`);
  const [code] = (await once(child, "close")) as [number | null];
  expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
  const lines = stdout.trim().split("\n");
  using engine = await Engine.open(folder);
  for (const [seed, prompt] of prompts.entries()) {
    const options = { maxTokens: 40, stop: ["\n"], seed, n: 1 as const };
    const { text, tokens } = await engine.complete(prompt, options);
    expect(JSON.parse(lines[seed] as string)).toEqual({ text, tokens: tokens.length });
  }
});
