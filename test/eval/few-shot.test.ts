import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { Examples } from "../../lib/eval/few-shot.js";
import { likelihoodRequests } from "../../lib/eval/prompt.js";
import { publishedTasks } from "../../lib/eval/registry.js";
import { TaskRows } from "../../lib/eval/rows.js";
import type { ChoiceTask, FewShot, Row, Task } from "../../lib/eval/task.js";

const folder = mkdtempSync(join(tmpdir(), "few-shot-"));
afterAll(() => rmSync(folder, { recursive: true }));

const rowsOf = (count: number, from = 0): Row[] =>
  Array.from({ length: count }, (_, i) => ({ q: `question ${from + i}`, a: (from + i) % 2 }));

/** A task with 30 examples; the questions are the examples 0, 1 and 2, and one more. */
function taskOf(name: string, fewShot: FewShot, train: readonly Row[] = rowsOf(30)): ChoiceTask {
  mkdirSync(join(folder, name), { recursive: true });
  const write = (split: string, rows: readonly Row[]) =>
    writeFileSync(
      join(folder, name, `${split}.jsonl`),
      rows.map((row) => JSON.stringify(row)).join("\n"),
    );
  write("train", train);
  write("test", [...rowsOf(3), ...rowsOf(1, 99)]);
  return {
    kind: "choice",
    name,
    version: 0,
    data: {
      dataset: `own/${name}`,
      split: "test",
      fewShotSplit: "train",
      columns: ["q", "a"],
    },
    fewShot,
    prompt: (row) => `${row.q}?`,
    choices: () => ["no", "yes"],
    answer: (row) => row.a as number,
    metrics: ["acc"],
  };
}

async function drawn(task: Task, count: number): Promise<string[][]> {
  const rows = new TaskRows({ data: folder });
  const examples = await Examples.open(task, rows, { count });
  const questions = await rows.questionsOf(task);
  return questions.map((row) =>
    examples.next(row).examples.map(({ q }) => String(q).replace("question ", "")),
  );
}

// The expected choices are those of lm-evaluation-harness' ContextSampler with seed 1234.
describe("the random sampler", () => {
  test("goes on from question to question, as Python's", async () => {
    const task = taskOf("plain", { count: 0, sampler: "random", leavesOutQuestion: false });
    expect(await drawn(task, 3)).toEqual([
      ["24", "14", "3"],
      ["0", "2", "29"],
      ["25", "18", "1"],
      ["21", "22", "2"],
    ]);
  });

  test("draws one example more where it leaves the question out", async () => {
    const task = taskOf("leaving", { count: 0, sampler: "random", leavesOutQuestion: true });
    expect(await drawn(task, 3)).toEqual([
      ["24", "14", "3"],
      ["2", "29", "25"],
      ["1", "21", "22"],
      ["3", "24", "11"],
    ]);
  });

  test("draws anew if copies of the question took too many places", async () => {
    const copies = [...rowsOf(3), ...rowsOf(1), ...rowsOf(1), ...rowsOf(1)];
    const fewShot = { count: 0, sampler: "random", leavesOutQuestion: true } as const;
    const task = taskOf("copies", fewShot, copies);
    expect(await drawn(task, 2)).toEqual([
      ["1", "2"],
      ["0", "0"],
      ["1", "0"],
      ["0", "0"],
    ]);
  });

  test("leaves out the question of its own accord where examples come from its split", async () => {
    const task = taskOf("own", { count: 0, sampler: "random" });
    const { fewShotSplit: _, ...data } = task.data;
    task.data = data;
    const choices = await drawn(task, 3);
    expect(choices.map((names) => [...names].sort())).toEqual([
      ["1", "2", "99"],
      ["0", "2", "99"],
      ["0", "1", "99"],
      ["0", "1", "2"],
    ]);
  });
});

describe("the first examples", () => {
  test("are the same for each question", async () => {
    const task = taskOf("first", { count: 0, sampler: "first" });
    expect(await drawn(task, 2)).toEqual(Array(4).fill(["0", "1"]));
  });

  test("may leave out the question", async () => {
    const task = taskOf("others", { count: 0, sampler: "first", leavesOutQuestion: true });
    expect(await drawn(task, 2)).toEqual([
      ["1", "2"],
      ["0", "2"],
      ["0", "1"],
      ["0", "1"],
    ]);
  });

  test("may be fixed ones", async () => {
    const task = taskOf("fixed", { count: 1, sampler: "first", examples: rowsOf(2, 50) });
    expect(await drawn(task, 1)).toEqual(Array(4).fill(["50"]));
  });
});

describe("the prompt", () => {
  const [row] = rowsOf(1) as [Row];
  const examples = rowsOf(2, 1);

  test("shows description, examples, delimiters", () => {
    const task = taskOf("shown", { count: 2, sampler: "first", delimiter: "\n--\n" });
    const shown = { examples, description: "Answer.\n\n" };
    expect(likelihoodRequests({ ...task, targetDelimiter: " = " }, row, shown)[1]).toEqual({
      prompt: "Answer.\n\nquestion 1? = yes\n--\nquestion 2? = no\n--\nquestion 0?",
      continuation: " = yes",
    });
  });

  test("shows examples in their own form", () => {
    const task = taskOf("form", {
      count: 2,
      sampler: "first",
      targetDelimiter: ":",
      prompt: ({ q }) => String(q).toUpperCase(),
      target: ({ a }) => `<${a}>`,
    });
    expect(likelihoodRequests(task, row, { examples, description: "" })[0]).toEqual({
      prompt: "QUESTION 1:<1>\n\nQUESTION 2:<0>\n\nquestion 0?",
      continuation: " no",
    });
  });

  test("has WinoGrande's right sentence as an example", () => {
    const task = publishedTasks.get("winogrande") as ChoiceTask;
    const sentence = { sentence: "A saw _ run.", option1: "B", option2: "C", answer: "2" };
    const shown = { examples: [sentence], description: "" };
    expect(likelihoodRequests(task, sentence, shown)[0]).toEqual({
      prompt: "A saw C run.\n\nA saw B",
      continuation: " run.",
    });
  });
});

test("more examples than there are rows is an error that tells the most", async () => {
  const task = taskOf("few", { count: 0, sampler: "random", leavesOutQuestion: true });
  await expect(drawn(task, 30)).rejects.toThrow(
    "[evaluate] expected at most 29 for fewShot, the examples of few, got 30",
  );
  await expect(drawn(task, 1.5)).rejects.toThrow("an integer of at least 0 for fewShot");
});
