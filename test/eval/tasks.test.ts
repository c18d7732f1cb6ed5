import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { Examples } from "../../lib/eval/few-shot.js";
import {
  choiceTexts,
  countedText,
  likelihoodRequests,
  rightChoice,
  wholeText,
} from "../../lib/eval/prompt.js";
import { publishedTasks, selectTasks, taskGroups } from "../../lib/eval/registry.js";
import type { EvaluationResults } from "../../lib/eval/results.js";
import { TaskRows } from "../../lib/eval/rows.js";
import { rowsNote } from "../../lib/eval/table.js";
import type { ChoiceTask, ContinuationTask, Row, TextTask } from "../../lib/eval/task.js";

// The expected texts are those that lm-evaluation-harness 0.4.13 makes of the same rows;
// scripts/eval compares all rows of a folder.

const folder = mkdtempSync(join(tmpdir(), "tasks-"));
afterAll(() => rmSync(folder, { recursive: true }));

function write(path: string, rows: readonly Row[]): void {
  mkdirSync(join(folder, path, ".."), { recursive: true });
  writeFileSync(join(folder, path), rows.map((row) => `${JSON.stringify(row)}\n`).join(""));
}

const bare = { examples: [], description: "" };

async function firstQuestion<T>(name: string): Promise<{ task: T; row: Row }> {
  const task = publishedTasks.get(name);
  if (task === undefined) throw new Error(`no task ${name}`);
  const [row] = await new TaskRows({ data: folder }).questionsOf(task);
  return { task: task as T, row: row as Row };
}

async function asked(name: string) {
  const { task, row } = await firstQuestion<ChoiceTask>(name);
  return { requests: likelihoodRequests(task, row, bare), right: rightChoice(task, row) };
}

const labelled = { text: ["fire", "ice"], label: ["A", "B"] };

describe("requests of a question", () => {
  test("of HellaSwag have no marks in brackets", async () => {
    write("hellaswag/validation.jsonl", [
      {
        activity_label: "Knitting",
        ctx_a: "[header] How to knit [title] Take  wool.",
        ctx_b: "ΣΟΦΟΣ she",
        endings: ["sits [step] down.", " runs.", "eats\n[a\nb]", "."],
        label: "3",
      },
    ]);
    const { requests, right } = await asked("hellaswag");
    expect(requests.map(({ continuation }) => continuation)).toEqual([
      " sits down.",
      " runs.",
      " eats\n[a\nb]",
      " .",
    ]);
    expect(requests[0]?.prompt).toBe("Knitting: How to knit. Take wool. Σοφος she");
    expect(right).toBe(3);
  });

  test("of OpenBookQA are the bare question", async () => {
    write("openbookqa/test.jsonl", [
      { question_stem: "What burns", choices: labelled, answerKey: " A" },
    ]);
    const { requests, right } = await asked("openbookqa");
    expect(requests[1]).toEqual({ prompt: "What burns", continuation: " ice" });
    expect(right).toBe(0);
  });

  test("of WinoGrande have the rest of the sentence after both options", async () => {
    write("winogrande/validation.jsonl", [
      { sentence: "Ann thanked Bea as _ had help.", option1: "Ann", option2: "Bea", answer: "1" },
    ]);
    const { requests, right } = await asked("winogrande");
    expect(requests).toEqual([
      { prompt: "Ann thanked Bea as Ann", continuation: " had help." },
      { prompt: "Ann thanked Bea as Bea", continuation: " had help." },
    ]);
    expect(right).toBe(0);
    const { task, row } = await firstQuestion<ChoiceTask>("winogrande");
    expect(choiceTexts(task, row)).toEqual(["Ann thanked Bea as Ann", "Ann thanked Bea as Bea"]);
  });

  test("of ARC end with Answer:", async () => {
    const rows = [{ question: "What burns?", choices: labelled, answerKey: "B" }];
    write("arc_easy/test.jsonl", rows);
    write("ai2_arc/ARC-Challenge/test.jsonl", rows);
    for (const name of ["arc_easy", "arc_challenge"]) {
      const { requests, right } = await asked(name);
      expect(requests[0]).toEqual({
        prompt: "Question: What burns?\nAnswer:",
        continuation: " fire",
      });
      expect(right).toBe(1);
    }
  });

  test("of BoolQ ask no before yes", async () => {
    write("boolq/validation.jsonl", [{ passage: "Fire burns.", question: "is it hot", label: 1 }]);
    const { requests, right } = await asked("boolq");
    const prompt = "Fire burns.\nQuestion: is it hot?\nAnswer:";
    expect(requests).toEqual([
      { prompt, continuation: " no" },
      { prompt, continuation: " yes" },
    ]);
    expect(right).toBe(1);
  });

  test("of PIQA have the solutions as choices", async () => {
    write("piqa/validation.jsonl", [{ goal: "Cool", sol1: "ice", sol2: "fire", label: 0 }]);
    const { requests } = await asked("piqa");
    expect(requests[0]).toEqual({ prompt: "Question: Cool\nAnswer:", continuation: " ice" });
  });

  test("of LAMBADA ask for the last word", async () => {
    write("lambada_openai/test.jsonl", [{ text: "She met  Bob" }, { text: "Bob" }]);
    const { task, row } = await firstQuestion<ContinuationTask>("lambada_openai");
    expect(likelihoodRequests(task, row, bare)).toEqual([
      { prompt: "She met ", continuation: " Bob" },
    ]);
    expect(likelihoodRequests(task, { text: "Bob" }, bare)).toEqual([
      { prompt: "", continuation: " Bob" },
    ]);
  });

  test("of WikiText are joined pages, and the original ones are counted", async () => {
    const page = " = Ann 's = \n ( a ) 1 @,@ 000 , \" b \" ; she 's \n /' 5/ ";
    write("wikitext/test.jsonl", [{ page }]);
    const { task, row } = await firstQuestion<TextTask>("wikitext");
    expect(wholeText(task, row)).toBe(" = Ann's =\n(a) 1,000, \"b\"; she's\n/'[0-9]/ ");
    expect(countedText(task, row)).toBe(page);
  });

  test("of MMLU show the first rows of dev, also from a file of all subjects", async () => {
    const question = (subject: string, text: string, answer: number) => {
      return { question: text, subject, choices: ["1", "2", "3", "4"], answer };
    };
    write("mmlu/test.jsonl", [
      question("astronomy", "no", 0),
      question("us_foreign_policy", "Who? \u0085", 1),
    ]);
    write("mmlu/dev.jsonl", [
      question("astronomy", "no", 0),
      ...[0, 1, 2, 3, 0, 1].map((n, i) => question("us_foreign_policy", `Q${i}`, n)),
    ]);
    const { task, row } = await firstQuestion<ChoiceTask>("mmlu_us_foreign_policy");
    const rows = new TaskRows({ data: folder });
    const examples = await Examples.open(task, rows, { count: 2 });
    const [request] = likelihoodRequests(task, row, examples.next(row));
    const choices = "A. 1\nB. 2\nC. 3\nD. 4\nAnswer:";
    expect(request).toEqual({
      prompt:
        "The following are multiple choice questions (with answers) about us foreign policy.\n\n" +
        `Q0\n${choices} A\n\nQ1\n${choices} B\n\nWho?\n${choices}`,
      continuation: " A",
    });
    expect((await Examples.open(task, rows)).count).toBe(5);
  });
});

describe("the registry", () => {
  test("has MMLU's 57 subjects in four areas", async () => {
    const { tasks, groups } = await selectTasks("mmlu");
    expect(tasks).toHaveLength(57);
    expect(groups.map(({ name, members }) => [name, members.length])).toEqual([
      ["mmlu", 4],
      ["mmlu_stem", 19],
      ["mmlu_other", 13],
      ["mmlu_social_sciences", 12],
      ["mmlu_humanities", 13],
    ]);
  });

  test("has each member of each group", () => {
    for (const { members } of taskGroups.values()) {
      for (const name of members)
        expect(publishedTasks.has(name) || taskGroups.has(name)).toBe(true);
    }
  });

  test("takes each task once, in the order of the call", async () => {
    const { tasks } = await selectTasks(["piqa", "commonsense", "piqa", "text:a.txt"]);
    expect(tasks.map(({ name }) => name)).toEqual([
      "piqa",
      "hellaswag",
      "openbookqa",
      "winogrande",
      "arc_challenge",
      "arc_easy",
      "boolq",
      "text:a.txt",
    ]);
  });

  test("names the nearest task for one it does not know", async () => {
    await expect(selectTasks("helaswag")).rejects.toThrow(
      'expected a task or group, got "helaswag"; did you mean hellaswag?',
    );
    await expect(selectTasks([])).rejects.toThrow("at least one task");
  });

  test("refuses two tasks of one name", async () => {
    const piqa = publishedTasks.get("piqa") as ChoiceTask;
    await expect(selectTasks(["piqa", { ...piqa }])).rejects.toThrow("two named piqa");
  });
});

test("rows that are not as many as the published ones are noted", () => {
  const counts = {
    piqa: { original: 1838, effective: 10 },
    boolq: { original: 3269, effective: 3269 },
    own: { original: 5, effective: 5 },
  };
  const results = { "n-samples": counts } as unknown as EvaluationResults;
  expect(rowsNote(results)).toBe(
    "the rows are not those of the published scores: boolq 3,269 instead of 3,270",
  );
  const { boolq: _, ...others } = counts;
  expect(rowsNote({ ...results, "n-samples": others })).toBe(null);
});
