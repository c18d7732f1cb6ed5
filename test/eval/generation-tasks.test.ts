import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Tokenizer } from "../../lib/data/tokenizer.js";
import { bestAssignment } from "../../lib/eval/assignment.js";
import { dropScores, normalizedSpan } from "../../lib/eval/drop-metric.js";
import { evaluate } from "../../lib/eval/evaluate.js";
import { pythonFloat, pythonFloatText } from "../../lib/eval/python-float.js";
import { TaskRows } from "../../lib/eval/rows.js";
import { Sandbox } from "../../lib/eval/sandbox.js";
import type { GenerationTask, Row } from "../../lib/eval/task.js";
import { bbhDirectTasks, bbhThoughtTasks } from "../../lib/eval/tasks/bbh.js";
import { drop, dropFewShot, rightAnswers } from "../../lib/eval/tasks/drop.js";
import { humaneval, humaneval64, passAtK } from "../../lib/eval/tasks/humaneval.js";
import { Llama } from "../../lib/model/llama.js";
import { root } from "../cli/build.js";

const named = (tasks: readonly GenerationTask[], name: string): GenerationTask =>
  tasks.find((task) => task.name === name) as GenerationTask;

describe("BBH", () => {
  const thought = named(bbhThoughtTasks, "bbh_cot_fewshot_navigate");
  const direct = named(bbhDirectTasks, "bbh_fewshot_navigate");
  const prompts = [1, 2, 3].map(
    (n) =>
      `Q: Walk ${n} steps.\nBack?\nA: Let's think step by step.\nStep ${n}.\nSo the answer is (${n}).`,
  );
  const text = `A notice.\n-----\nFind the way.\n\n${prompts.join("\n\n")}`;

  test("has 27 tasks in each form", () => {
    expect(new Set(bbhThoughtTasks.map(({ name }) => name)).size).toBe(27);
    expect(bbhDirectTasks.map(({ name }) => name.slice(12))).toEqual(
      bbhThoughtTasks.map(({ name }) => name.slice(16)),
    );
  });

  test("reads description and examples from the published prompt", () => {
    const read = thought.fewShot?.file?.read(text, "f");
    expect(read?.description).toBe("Find the way.\n\n");
    expect(read?.examples[1]).toEqual({
      input: "Walk 2 steps.\nBack?",
      target: "Step 2.\nSo the answer is (2).",
    });
    expect(direct.fewShot?.file?.read(text, "f").examples[1]?.target).toBe("(2)");
  });

  test("refuses a file without three examples", () => {
    const read = () => thought.fewShot?.file?.read("Find the way.\n\nQ: a\nA: b", "navigate.txt");
    expect(read).toThrow("navigate.txt: expected a description and three examples");
  });

  test("names the file of examples that is missing, and where it can be had", async () => {
    const rows = new TaskRows({ data: "/nowhere" });
    const file = thought.fewShot?.file as NonNullable<GenerationTask["fewShot"]>["file"];
    const missing = rows.exampleFile(thought, file as NonNullable<typeof file>);
    await expect(missing).rejects.toThrow("/nowhere/bbh/cot-prompts/navigate.txt");
    await expect(missing).rejects.toThrow("BIG-Bench-Hard/main/cot-prompts/navigate.txt");
  });

  test.each([
    ["So the answer is (A).", "(A)"],
    ["So the answer is (A)", "(A"], // the last character is left out, whatever it is
    ["the answer is  yes .\nthe answer is no.", "yes"],
    ["the answer is \nthe answer is no.", "no"],
    ["The answer is no.", "[invalid]"],
    ["the answer is", "[invalid]"],
    ["nothing", "[invalid]"],
    ["the answer is \u{1f600}\u{1f600}", "\u{1f600}"],
  ])("finds the answer in %j", (answer, found) => {
    expect(thought.filters?.[0]?.apply({}, answer)).toBe(found);
    expect(thought.score({ target: "(A)" }, [found], null)).toEqual({
      exact_match: found === "(A)" ? 1 : 0,
    });
  });
});

describe("DROP", () => {
  const none = { number: "", spans: [], date: { day: "", month: "", year: "" } };
  const validated = { number: [], spans: [], date: [] };
  const row = (answer: object, others = {}): Row => ({
    passage: "p",
    question: "q",
    answer: { ...none, ...answer },
    validated_answers: { ...validated, ...others },
  });

  test("takes a number, spans or a date of each annotator", () => {
    const others = {
      number: ["", ""],
      spans: [["a", "b"], []],
      date: [none.date, { day: "", month: "May", year: "1864" }],
    };
    expect(rightAnswers(row({ number: "4" }, others))).toEqual([["4"], ["a", "b"], ["May 1864"]]);
  });

  test("reads the spans of ucinlp/drop, whose annotators are not told apart", () => {
    const listed = (spans: unknown, types: unknown) => ({
      passage: "p",
      question: "q",
      answers_spans: { spans, types },
    });
    expect(rightAnswers(listed(["4", "5"], ["number", "number"]))).toEqual([["4"], ["5"]]);
    expect(rightAnswers(listed(["a", "b", "a"], ["span", "span", "span"]))).toEqual([["a", "b"]]);
    expect(() => rightAnswers(listed(["a"], []))).toThrow("for column answers_spans");
    expect(() => rightAnswers(listed([], []))).toThrow("for column answers_spans");
  });

  test("shows field names as the harness does, and answers in the task with examples", () => {
    const own = row({ spans: ["x", "y"] });
    expect(drop.target(own)).toBe(Object.keys(own.answer as object).join(","));
    expect(dropFewShot.target(own)).toBe(" x, y.");
  });

  test("names the column that is no answer", () => {
    expect(() => rightAnswers(row({ spans: 3 }))).toThrow("for column answer");
    expect(() => rightAnswers({ ...row({}), validated_answers: [] })).toThrow("validated_answers");
  });

  test.each([
    ["the 3 Bears", ["3 bears"], 1, 1],
    ["3.0", ["3"], 1, 1],
    ["1,234", ["1234"], 1, 1],
    ["4 yards", ["3 yards"], 0, 0], // a wrong number counts nothing
    ["bears and lions", ["bears", "lions"], 0, 0.25],
    ["", ["the"], 1, 1],
  ])("scores %j against %j", (answer, spans, em, f1) => {
    expect(drop.score(row({ spans }), [answer], null)).toEqual({ em, f1 });
  });

  test("takes the best annotator, and none without a text", () => {
    const others = { number: ["7"], spans: [[]], date: [none.date] };
    expect(drop.score(row({ spans: ["x"] }, others), ["7"], null)).toEqual({ em: 1, f1: 1 });
    expect(drop.score(row({ spans: [" "] }), [""], null)).toEqual({ em: 0, f1: 0 });
  });

  test("aligns several spans as well as possible", () => {
    // The first right span would take the answer that the second one needs.
    expect(dropScores(["a b c", "x y"], ["b c", "b c d x y"]).f1).toBeCloseTo(0.79, 2);
    const scores = fc
      .tuple(fc.integer({ min: 1, max: 5 }), fc.integer({ min: 1, max: 5 }))
      .chain(([rows, columns]) => {
        const row = fc.array(fc.integer({ min: 0, max: 9 }), {
          minLength: columns,
          maxLength: columns,
        });
        return fc.array(row, { minLength: rows, maxLength: rows });
      });
    fc.assert(
      fc.property(scores, (table) => {
        const columns = bestAssignment(table);
        const used = columns.filter((column) => column >= 0);
        expect(new Set(used).size).toBe(Math.min(table.length, table[0]?.length as number));
        const sum = columns.reduce((total, column, i) => total + (table[i]?.[column] ?? 0), 0);
        expect(sum).toBe(bestSum(table, 0, new Set()));
      }),
      { numRuns: 200 },
    );
  });

  test("normalises words and numbers", () => {
    expect(normalizedSpan("The Well-known Dr. A. 1e3 an_ 5%")).toBe("well known dr 1000.0 5.0");
  });
});

/** The greatest sum of an assignment, by trying all of them. */
function bestSum(table: readonly (readonly number[])[], row: number, used: Set<number>): number {
  if (row === table.length) return 0;
  const free = (table[row] as readonly number[]).flatMap((score, column) =>
    used.has(column) ? [] : [score + bestSum(table, row + 1, new Set(used).add(column))],
  );
  return Math.max(bestSum(table, row + 1, used), ...free);
}

describe("Python's floats", () => {
  test.each([
    ["1e16", "1e+16"],
    ["1234567890123456", "1234567890123456.0"],
    ["0.0001", "0.0001"],
    ["0.00001", "1e-05"],
    ["-0", "-0.0"],
    ["1_0.5", "10.5"],
    [" ٣ ", "3.0"],
    ["-Infinity", "-inf"],
    ["nan", "nan"],
    ["5.", "5.0"],
  ])("%j is %s", (text, shown) => {
    expect(pythonFloatText(pythonFloat(text) as number)).toBe(shown);
  });

  test.each(["", "1__0", "_1", "0x10", "1,0", "½", "e5", "1e", "infinit"])("%j is none", (text) => {
    expect(pythonFloat(text)).toBeNull();
  });
});

describe("HumanEval", () => {
  let folder: string;
  let model: Llama;
  let tokenizer: Tokenizer;
  const problem = {
    task_id: "made/0",
    prompt: 'def double(x):\n    """Twice x."""\n',
    entry_point: "double",
    canonical_solution: "    return 2 * x\n",
    test: "def check(candidate):\n    assert candidate(2) == 4\n",
  };
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "llamaforge-test-"));
    await mkdir(join(folder, "humaneval"));
    await writeFile(join(folder, "humaneval/test.jsonl"), `${JSON.stringify(problem)}\n`);
    tokenizer = await Tokenizer.load(join(root, "assets/quickstart"));
    model = new Llama({
      vocabSize: 4096,
      hiddenSize: 16,
      intermediateSize: 16,
      layers: 1,
      heads: 1,
      kvHeads: 1,
      headSize: 16,
      contextLength: 128,
      ropeTheta: 10000,
      rmsNormEps: 1e-5,
      tieEmbeddings: false,
    }).allocate({ seed: 1 });
  });
  afterAll(async () => {
    model.dispose();
    await rm(folder, { recursive: true });
  });

  test("estimates pass@k from n samples", () => {
    expect(passAtK(1, 1, 1)).toBe(1);
    expect(passAtK(10, 0, 5)).toBe(0);
    expect(passAtK(10, 6, 5)).toBe(1);
    expect(passAtK(5, 2, 2)).toBeCloseTo(1 - 3 / 10, 12);
    expect(passAtK(64, 1, 8)).toBeCloseTo(1 / 8, 12);
    expect(() => passAtK(1, 0, 2)).toThrow("pass@2 needs at least 2 completions");
  });

  test.each([
    [{ repeats: 0 }, "repeats"],
    [{ repeats: 1.5 }, "repeats"],
    [{ temperature: Number.NaN }, "temperature"],
    [{ topP: 0 }, "topP"],
    [{ until: [1] }, "until[0]"],
    [{ maxTokens: 0 }, "maxTokens"],
    [{ filters: [{ name: "x" }] }, "filters[0].apply"],
  ])("refuses answers that cannot be written: %j", async (wrong, field) => {
    const refused = evaluate(model, { ...drop, ...wrong } as GenerationTask, { tokenizer });
    await expect(refused).rejects.toThrow(`tasks[0].${field}`);
  });

  test("runs no program unless the evaluation allows it", async () => {
    const refused = evaluate(model, "humaneval", { tokenizer, data: folder });
    await expect(refused).rejects.toThrow("humaneval would run programs that the model wrote");
    const direct = Promise.resolve(humaneval.score(problem, ["x"], null));
    await expect(direct).rejects.toThrow("allowCodeExecution");
  });

  test("scores programs by their tests", async (context) => {
    const sandbox = await Sandbox.open({ allowCodeExecution: true }).catch((error: Error) => error);
    if (sandbox instanceof Error) return context.skip(sandbox.message);
    const run = (programs: readonly string[]) => sandbox.runAll(programs);
    const whole = (answer: string) => humaneval.filters?.[0]?.apply(problem, answer) as string;
    const right = whole(problem.canonical_solution);
    const wrong = whole("    return x\n");
    expect(await humaneval.score(problem, [right], run)).toEqual({ "pass@1": 1 });
    expect(await humaneval.score(problem, [wrong], run)).toEqual({ "pass@1": 0 });
    const few = Promise.resolve(humaneval64.score(problem, [right, wrong, wrong, wrong], run));
    await expect(few).rejects.toThrow("pass@8 needs at least 8 completions of each problem, got 4");
    const all = Array.from({ length: 64 }, (_, i) => (i === 0 ? right : wrong));
    const two = await humaneval64.score(problem, all, run);
    expect(two["pass@2"]).toBeCloseTo(2 / 64, 12);
  });

  test("goes from a model to its score", async (context) => {
    const options = { tokenizer, data: folder, allowCodeExecution: true, logSamples: true };
    const task = { ...humaneval, maxTokens: 16 };
    const found = await evaluate(model, task, options).catch((error: Error) => error);
    if (found instanceof Error) {
      if (/namespaces/.test(found.message)) return context.skip(found.message);
      throw found;
    }
    expect(found.results.humaneval?.["pass@1,create_test"]).toBe(0);
  });
});
