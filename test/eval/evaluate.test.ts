import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { ArgumentError, DataError, TokenizerError } from "../../lib/core/errors.js";
import { Tokenizer } from "../../lib/data/tokenizer.js";
import { type EvaluateOptions, evaluate } from "../../lib/eval/evaluate.js";
import type { ChoiceTask } from "../../lib/eval/task.js";
import { Llama } from "../../lib/model/llama.js";
import { llamaConfig } from "../../lib/model/llama-config.js";
import { root } from "../cli/build.js";
import { writeRows } from "./rows-of-tests.js";

let data: string;
let tokenizer: Tokenizer;
let model: Llama;
let options: EvaluateOptions;

const sizes = { hiddenSize: 32, intermediateSize: 48, layers: 2, heads: 2, kvHeads: 1 };
const rest = { ropeTheta: 10_000, rmsNormEps: 1e-5, tieEmbeddings: false };

beforeAll(async () => {
  data = await mkdtemp(join(tmpdir(), "llamaforge-evaluate-"));
  await writeRows(data);
  tokenizer = await Tokenizer.load(join(root, "assets/quickstart"));
  model = await Llama.create(
    llamaConfig({ vocabSize: 4096, contextLength: 96, ...sizes, ...rest }),
    { seed: 4 },
  );
  options = { tokenizer, data };
});
afterAll(async () => {
  model.dispose();
  await rm(data, { recursive: true, force: true });
});

/** A task whose answer can be told from the likelihoods that the samples record. */
const colours: ChoiceTask = {
  kind: "choice",
  name: "colours",
  version: 3,
  data: { dataset: "own/colours", split: "test", columns: ["thing", "colour"] },
  prompt: ({ thing }) => `The ${thing} is`,
  choices: () => ["red", "green", "blue"],
  answer: ({ colour }) => ["red", "green", "blue"].indexOf(colour as string),
  metrics: ["acc", "acc_norm"],
};

describe("results", () => {
  it("have the harness's layout, with groups and a task of one's own", async () => {
    const result = await evaluate(model, colours, {
      ...options,
      logSamples: true,
    });
    expect(Object.keys(result)).toEqual([
      "results",
      "group_subtasks",
      "configs",
      "versions",
      "n-shot",
      "higher_is_better",
      "n-samples",
      "cut-prompts",
      "config",
      "samples",
    ]);
    expect(result.versions).toEqual({ colours: 3 });
    expect(result["n-samples"]).toEqual({ colours: { original: 4, effective: 4 } });
    expect(result.configs.colours).toMatchObject({
      dataset_path: "own/colours",
      output_type: "multiple_choice",
      metadata: { version: 3 },
    });
    const samples = result.samples?.colours ?? [];
    expect(samples.map(({ doc_id }) => doc_id)).toEqual([0, 1, 2, 3]);
    expect(samples[0]?.arguments[1]).toEqual(["The sky is", " green"]);
    // The scores follow from the log-likelihoods of the samples.
    const lengths = [3, 5, 4];
    const right = samples.map(({ filtered_resps: said, target }) => {
      const values = said.map((reply) => (reply as [number, boolean])[0]);
      const each = values.map((value, i) => value / (lengths[i] as number));
      return [values, each].map((list) => list.indexOf(Math.max(...list)) === target);
    });
    const share = (metric: 0 | 1) => right.filter((each) => each[metric]).length / 4;
    expect(result.results.colours).toMatchObject({
      "acc,none": share(0),
      "acc_norm,none": share(1),
    });
  });

  it("of a group average its tasks, and count what is cut from the left", async () => {
    const result = await evaluate(model, "commonsense", { ...options, limit: 2 });
    const { commonsense, ...tasks } = result.results;
    const scores = Object.values(tasks).map((task) => task["acc_norm,none"] ?? task["acc,none"]);
    expect(scores.length).toBe(7);
    const mean = (scores as number[]).reduce((sum, score) => sum + score, 0) / 7;
    expect(commonsense?.["average,none"]).toBeCloseTo(mean, 12);
    expect(result.groups?.commonsense).toEqual(commonsense);
    // BoolQ's passage is longer than the context of 96 tokens.
    expect(result["cut-prompts"].boolq).toEqual({ prompts: 2, tokens: expect.any(Number) });
  });

  it("do not depend on the batch, and a limit asks the first questions", async () => {
    const one = await evaluate(model, "arc_easy", { ...options, batch: 1, logSamples: true });
    const all = await evaluate(model, "arc_easy", { ...options, batch: 64, logSamples: true });
    expect(one.results).toEqual(all.results);
    const limited = await evaluate(model, "arc_easy", { ...options, limit: 2, logSamples: true });
    expect(limited.samples?.arc_easy?.map(({ doc }) => doc)).toEqual(
      all.samples?.arc_easy?.slice(0, 2).map(({ doc }) => doc),
    );
    expect(limited["n-samples"].arc_easy).toEqual({ original: 3, effective: 2 });
  });

  it("of texts are per word, byte and token", async () => {
    const file = join(data, "own.txt");
    await writeFile(file, "Four words and more.\n");
    const { results } = await evaluate(model, `text:${file}`, options);
    const scores = results[`text:${file}`] as Record<string, unknown>;
    const [perToken, perByte] = [scores["token_perplexity,none"], scores["bits_per_byte,none"]];
    const tokens = (await tokenizer.encode("Four words and more.\n")).length;
    // Both say the likelihood of the text.
    expect(Math.log(perToken as number) * tokens).toBeCloseTo(
      (perByte as number) * Math.LN2 * "Four words and more.\n".length,
      8,
    );
    expect(scores["word_perplexity_stderr,none"]).toBe("N/A");
  });
});

describe("bad input", () => {
  const failed = (tasks: unknown, more: object = {}) =>
    evaluate(model, tasks as string, { ...options, ...more }).catch((error: unknown) => error);

  it("is refused with what would be right", async () => {
    expect(await failed("hellaswg")).toMatchObject({ message: /did you mean hellaswag/ });
    expect(await failed("piqa", { limit: 0 })).toMatchObject({
      message: /expected an integer from 1 to .* for limit but received 0/,
    });
    expect(await failed("piqa", { batch: "many" })).toBeInstanceOf(ArgumentError);
    expect(await failed("piqa", { limits: 3 })).toMatchObject({ message: /did you mean limit/ });
    expect(await failed([])).toBeInstanceOf(ArgumentError);
    expect(await failed({ ...colours, kind: "chioce" })).toMatchObject({
      message: /tasks\[0\]\.kind/,
    });
    expect(await failed("piqa", { tokenizer: "assets" })).toMatchObject({
      message: /expected a tokenizer for tokenizer/,
    });
    const nothing = await failed("piqa", { data: join(data, "nowhere") });
    expect(nothing).toBeInstanceOf(DataError);
  });

  it("names the file and the row that lacks a column", async () => {
    const folder = join(data, "bad");
    await mkdir(join(folder, "colours"), { recursive: true });
    await writeFile(
      join(folder, "colours/test.jsonl"),
      '{"thing":"sky","colour":"blue"}\n{"thing":"grass"}\n',
    );
    expect(await failed(colours, { data: folder })).toMatchObject({
      message: /colours: .*colours\/test\.jsonl, line 2: .*colour/,
    });
  });

  it("is missing rows of any task, before the model works", async () => {
    const seen: string[] = [];
    const missing = await failed(["piqa", "drop_fewshot", "lambada_openai", "mmlu_anatomy"], {
      onProgress: ({ task }: { task: string }) => seen.push(task),
    });
    expect(missing).toBeInstanceOf(DataError);
    const { message } = missing as Error;
    expect(message).toMatch(/^\[evaluate\] drop_fewshot: rows of split validation are missing/);
    expect(message).toMatch(/^\[evaluate\] lambada_openai: rows of split test are missing/m);
    expect(seen).toEqual([]);
  });

  it("is a choice that is longer than the context", async () => {
    const folder = join(data, "long");
    await mkdir(join(folder, "piqa"), { recursive: true });
    const rows = ["a", "word ".repeat(200)].map((sol1) => ({
      goal: "g",
      sol1,
      sol2: "b",
      label: 0,
    }));
    const lines = rows.map((row) => `${JSON.stringify(row)}\n`).join("");
    await writeFile(join(folder, "piqa/validation.jsonl"), lines);
    const long = await failed("piqa", { data: folder });
    expect(long).toBeInstanceOf(DataError);
    expect(long).toMatchObject({
      message:
        /piqa: .*validation\.jsonl, line 2: expected a continuation of at most 96 tokens, not/,
    });
  });

  it("is a tokenizer with more ids than the model", async () => {
    const small = await Llama.create(
      llamaConfig({ vocabSize: 100, contextLength: 96, ...sizes, ...rest }),
    );
    await expect(evaluate(small, colours, options)).rejects.toBeInstanceOf(TokenizerError);
    small.dispose();
  });
});

it("stops at a signal, and tells its progress", async () => {
  const seen: number[] = [];
  await evaluate(model, "arc_easy", { ...options, onProgress: ({ done }) => seen.push(done) });
  expect(seen[0]).toBe(0);
  expect(seen.at(-1)).toBe(12);
  const abort = new AbortController();
  const running = evaluate(model, ["arc_easy", colours], {
    ...options,
    signal: abort.signal,
    onProgress: ({ task }) => task === "colours" && abort.abort(new Error("enough")),
  });
  await expect(running).rejects.toThrow("enough");
});
