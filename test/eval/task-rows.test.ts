import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { gzipSync } from "node:zlib";
import { type ColumnSource, parquetWriteBuffer } from "hyparquet-writer";
import { afterAll, beforeEach, describe, expect, test } from "vitest";
import { matchSplit } from "../../lib/eval/data-files.js";
import { likelihoodRequests, rightChoice, wholeText } from "../../lib/eval/prompt.js";
import { makeQuestions } from "../../lib/eval/questions.js";
import { publishedTasks, selectTasks } from "../../lib/eval/registry.js";
import { TaskRows } from "../../lib/eval/rows.js";
import type { ChoiceTask, Row, Task, TextTask } from "../../lib/eval/task.js";

const base = mkdtempSync(join(tmpdir(), "task-rows-"));
afterAll(() => rmSync(base, { recursive: true }));
let folder = "";
beforeEach(() => {
  folder = mkdtempSync(join(base, "case-"));
});

function put(path: string, content: string | Uint8Array): void {
  mkdirSync(dirname(join(folder, path)), { recursive: true });
  writeFileSync(join(folder, path), content);
}

const lines = (rows: readonly unknown[]): string =>
  rows.map((row) => `${JSON.stringify(row)}\n`).join("");

const parquet = (columnData: ColumnSource[]): Uint8Array =>
  new Uint8Array(parquetWriteBuffer({ columnData }));

const taskNamed = (name: string): Task => {
  const task = publishedTasks.get(name);
  if (task === undefined) throw new Error(`no task ${name}`);
  return task;
};

const questions = (name: string): Promise<Row[]> =>
  new TaskRows({ data: folder }).questionsOf(taskNamed(name));

const piqaRow = (goal: string): Row => ({ goal, sol1: "a", sol2: "b", label: 0 });

describe("a data set is found", () => {
  test.each([
    "piqa/validation.jsonl",
    "piqa/validation.jsonl.gz",
    "baber/piqa/validation.jsonl",
    "baber/piqa/data/validation.json",
    "datasets--baber--piqa/snapshots/0123abc/data/validation.jsonl",
  ])("as %s", async (path) => {
    const text = lines([piqaRow("x"), piqaRow("y")]);
    put(path, path.endsWith(".gz") ? gzipSync(text) : text);
    expect((await questions("piqa")).map(({ goal }) => goal)).toEqual(["x", "y"]);
  });

  test("as shards of Parquet in the folder of a configuration, with all kinds of columns", async () => {
    const shard = (name: string) =>
      parquet([
        { name: "id", data: [`${name}1`, `${name}2`], type: "STRING" },
        { name: "question", data: [`${name} one`, `${name} two`], type: "STRING" },
        {
          name: "choices",
          data: [
            { text: ["fire", "ice"], label: ["1", "2"] },
            { text: ["é", "'"], label: ["A", "B"] },
          ],
        },
        { name: "answerKey", data: ["2", "A"], type: "STRING" },
      ] as ColumnSource[]);
    put("allenai/ai2_arc/ARC-Easy/test-00000-of-00002.parquet", shard("a"));
    put("allenai/ai2_arc/ARC-Easy/test-00001-of-00002.parquet", shard("b"));
    put("allenai/ai2_arc/ARC-Challenge/test-00000-of-00001.parquet", shard("c"));
    const rows = await questions("arc_easy");
    expect(rows.map(({ id }) => id)).toEqual(["a1", "a2", "b1", "b2"]);
    const task = taskNamed("arc_easy") as ChoiceTask;
    expect(rows.map((row) => rightChoice(task, row))).toEqual([1, 0, 1, 0]);
    expect(task.choices(rows[1] as Row)).toEqual(["é", "'"]);
    expect(await questions("arc_challenge")).toHaveLength(2);
    rmSync(join(folder, "allenai/ai2_arc/ARC-Easy/test-00000-of-00002.parquet"));
    await expect(questions("arc_easy")).rejects.toThrow(
      "expected 2 files, missing those with number 0",
    );
  });

  test("with true and false as labels, which are 1 and 0", async () => {
    const row = { passage: "p", question: "q" };
    put(
      "boolq/validation.jsonl",
      lines([
        { ...row, label: true },
        { ...row, label: false },
      ]),
    );
    const asked = await questions("boolq");
    const boolq = taskNamed("boolq") as ChoiceTask;
    expect(asked.map((one) => rightChoice(boolq, one))).toEqual([1, 0]);
  });

  test("with integers of 64 bits as labels", async () => {
    const data = parquet([
      { name: "passage", data: ["p"], type: "STRING" },
      { name: "question", data: ["q"], type: "STRING" },
      { name: "label", data: [1n], type: "INT64" },
    ]);
    put("aps/super_glue/boolq/validation-00000-of-00001.parquet", data);
    const [row] = await questions("boolq");
    expect(row).toEqual({ passage: "p", question: "q", label: 1 });
  });

  test("in the folder of its subject, which is not shared", async () => {
    const row = { question: "q", choices: ["1", "2", "3", "4"], answer: 2, subject: "" };
    put("cais/mmlu/virology/test.jsonl", lines([row]));
    expect(await questions("mmlu_virology")).toEqual([row]);
  });

  test("as a text of one's own, or as records of texts", async () => {
    put("own.txt", "One text.\n");
    put("own.jsonl", lines([{ text: "a" }, { text: "b" }]));
    for (const [name, texts] of [
      ["own.txt", ["One text.\n"]],
      ["own.jsonl", ["a", "b"]],
    ] as const) {
      const [task] = (await selectTasks(`text:${join(folder, name)}`)).tasks as [TextTask];
      const rows = await new TaskRows().questionsOf(task);
      expect(rows.map((row) => wholeText(task, row))).toEqual(texts);
    }
  });
});

test("names of files are told apart", () => {
  const found = (paths: string[], config?: string) => matchSplit(paths, config, "test");
  expect(found(["data/test-00000-of-00001-0a1b.parquet", "data/train.parquet"])?.files).toEqual([
    "data/test-00000-of-00001-0a1b.parquet",
  ]);
  expect(found(["en/test/0000.parquet", "de/test/0000.parquet"], "en")).toEqual({
    files: ["en/test/0000.parquet"],
    shared: false,
  });
  expect(found(["data/set_test.jsonl", "data/set_train.jsonl"])?.files).toEqual([
    "data/set_test.jsonl",
  ]);
  expect(found(["data/a_test.jsonl", "data/b_test.jsonl"])).toBe(null);
  expect(found(["plain_text/test-00000-of-00001.parquet", "README.md"])?.files).toEqual([
    "plain_text/test-00000-of-00001.parquet",
  ]);
  expect(found(["one/test.parquet", "two/test.parquet"])).toBe(null);
  expect(found(["one/test.parquet"], "two")).toBe(null);
  expect(found(["test.parquet", "test.jsonl"])?.files).toHaveLength(1);
  expect(found(["testing.jsonl", "latest.jsonl", "test.csv"])).toBe(null);
});

describe("errors name", () => {
  test("data set, files and place of missing rows", async () => {
    await expect(questions("hellaswag")).rejects.toThrow(
      "[evaluate] hellaswag: rows of split validation are missing (data set Rowan/hellaswag, " +
        `revision main): not in ${join(folder, "hellaswag")}, ${join(folder, "Rowan/hellaswag")}. ` +
        "Download the files of split validation, such as data/validation-*.parquet, from " +
        "https://huggingface.co/datasets/Rowan/hellaswag/tree/main to " +
        `${join(folder, "Rowan/hellaswag/data")}, put a file validation.jsonl in ` +
        `${join(folder, "hellaswag")}, or pass download`,
    );
    await expect(questions("arc_easy")).rejects.toThrow("ARC-Easy/test-*.parquet");
    await expect(new TaskRows().questionsOf(taskNamed("piqa"))).rejects.toThrow("as data");
  });

  test("a folder of data sets that does not exist, or is a file", async () => {
    const rows = (data: string) => new TaskRows({ data }).questionsOf(taskNamed("piqa"));
    const expected = "[evaluate] expected the folder of the data sets for data: ";
    const nowhere = join(folder, "nowhere");
    await expect(rows(nowhere)).rejects.toThrow(`${expected}${nowhere} does not exist`);
    put("file", "x");
    await expect(rows(join(folder, "file"))).rejects.toThrow(`${join(folder, "file")} is a file`);
  });

  test.each([
    [
      "line and column of a row that lacks one",
      '{"goal":1}\n',
      "line 1: expected the columns sol1, sol2, label, got a row with goal",
    ],
    [
      "the line that is not JSON",
      `${JSON.stringify(piqaRow("x"))}\n\n{"goal": \n`,
      "line 3: expected a JSON object on each line",
    ],
    ["the line that is no object", "[1]\n", "line 1: expected a JSON object"],
    ["the split without rows", "\n", "expected rows in split validation, got none from "],
    [
      "invalid UTF-8",
      new Uint8Array([0x7b, 0xff, 0x7d]),
      "line 1: invalid UTF-8 at byte 1 (0xff); convert the file",
    ],
  ])("%s", async (_, content, message) => {
    put("piqa/validation.jsonl", content);
    await expect(questions("piqa")).rejects.toThrow(message);
    await expect(questions("piqa")).rejects.toThrow("[evaluate]");
    await expect(questions("piqa")).rejects.toThrow(join(folder, "piqa/validation.jsonl"));
  });

  test("a damaged gzip and Parquet file", async () => {
    put("piqa/validation.jsonl.gz", gzipSync(lines([piqaRow("x")])).subarray(0, 20));
    await expect(questions("piqa")).rejects.toThrow("[evaluate] cannot decompress");
    put("boolq/validation.parquet", "PAR1 no");
    await expect(questions("boolq")).rejects.toThrow("expected a Parquet file, got 7 bytes");
  });

  const wrong = async (row: Row): Promise<string> => {
    put("piqa/validation.jsonl", lines([piqaRow("x"), row]));
    const task = taskNamed("piqa") as ChoiceTask;
    const found = (await questions("piqa"))[1] as Row;
    try {
      rightChoice(task, found);
      likelihoodRequests(task, found, { examples: [], description: "" });
    } catch (error) {
      return (error as Error).message;
    }
    throw new Error("no error");
  };

  test("file, row and column of a wrong value", async () => {
    const place = `[evaluate] piqa: ${join(folder, "piqa/validation.jsonl")}, line 2: `;
    expect(await wrong({ ...piqaRow("x"), label: 2 })).toBe(
      `${place}expected a right answer from 0 to 1, got 2`,
    );
    expect(await wrong({ ...piqaRow("x"), label: "yes" })).toBe(
      `${place}expected an integer for column label, got "yes"`,
    );
    expect(await wrong({ ...piqaRow("x"), goal: null })).toBe(
      `${place}expected a text for column goal, got null`,
    );
  });

  test.each([
    ["piqa", "validation", { ...piqaRow("x"), label: 2 }, "expected a right answer from 0 to 1"],
    [
      "drop",
      "validation",
      { passage: "p", question: "q", answers_spans: { spans: [], types: [] } },
      "line 1: expected { spans, types }",
    ],
    ["wikitext", "test", { page: "" }, "expected texts, got 1 empty ones"],
  ])("the wrong answer of %s before the model works", async (name, split, row, message) => {
    put(`${name}/${split}.jsonl`, lines([row]));
    const rows = new TaskRows({ data: folder });
    const made = makeQuestions(taskNamed(name), rows, { limit: undefined, seed: 0 });
    await expect(made).rejects.toThrow(message);
  });

  const own: ChoiceTask = {
    ...{ kind: "choice", name: "own", version: 1, metrics: ["acc"] },
    ...{ data: { dataset: "own", split: "test", columns: [] } },
    ...{ prompt: () => "a", choices: () => ["b"], answer: () => 0 },
  };
  test.each([
    [{ metrics: ["accuracy"] }, 'expected "acc" or "acc_norm" for tasks[0].metrics[0]'],
    [{ metrics: [] }, "expected at least one metric"],
    [{ name: "__proto__" }, "expected another name than __proto__"],
    [{ prompt: () => 5 }, "line 1: expected a list of texts from prompt, got 5"],
    [{ choices: () => "b" }, 'line 1: expected a list of texts from choices, got "b"'],
    [{ answer: () => "0" }, 'line 1: expected a right answer from 0 to 0, got "0"'],
  ])("a task of one's own that is wrong: %o", async (change, message) => {
    put("own/test.jsonl", "{}\n");
    const made = selectTasks({ ...own, ...change } as Task).then(({ tasks }) => {
      const rows = new TaskRows({ data: folder });
      return makeQuestions(tasks[0] as Task, rows, { limit: undefined, seed: 0 });
    });
    await expect(made).rejects.toThrow(message);
  });

  test("the row that a task cannot prepare", async () => {
    const row = { activity_label: "a", ctx_a: "b", ctx_b: "c", endings: ["d"], label: "" };
    put("hellaswag/validation.jsonl", lines([row]));
    await expect(questions("hellaswag")).rejects.toThrow(
      'validation.jsonl, line 1: expected an integer for column label, got ""',
    );
  });
});

describe("a download", () => {
  const download = (name: string) =>
    new TaskRows({ data: folder, download: true }).questionsOf(taskNamed(name));

  test("needs the Hub's package, or brings the files of the split", async () => {
    const installed = await import("@huggingface/hub" as string).then(
      () => true,
      () => false,
    );
    if (!installed) {
      await expect(download("piqa")).rejects.toThrow(
        "download needs the package @huggingface/hub: install it with npm install @huggingface/hub",
      );
      return;
    }
    const files: Record<string, string> = {
      "data/validation.jsonl": lines([piqaRow("from afar")]),
      "data/train.jsonl": lines([piqaRow("not wanted")]),
    };
    const server = createServer((request, response) => {
      const path = request.url as string;
      if (path.startsWith("/api/datasets/baber/piqa/tree/main")) {
        response.setHeader("content-type", "application/json");
        const listed = Object.entries(files).map(([name, { length }]) => {
          return { type: "file", path: name, size: length, oid: "0" };
        });
        response.end(JSON.stringify(listed));
        return;
      }
      const name = path.replace(/^\/datasets\/baber\/piqa\/(?:resolve|raw)\/main\//, "");
      const text = files[name.split("?")[0] as string];
      response.setHeader("etag", '"0"');
      const isRange = request.headers.range !== undefined;
      response.statusCode = text === undefined ? 404 : isRange ? 206 : 200;
      if (isRange) response.setHeader("content-range", `bytes 0-0/${text?.length}`);
      response.end(isRange ? text?.[0] : text);
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    process.env.HF_ENDPOINT = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    try {
      expect((await download("piqa")).map(({ goal }) => goal)).toEqual(["from afar"]);
      expect(readdirSync(join(folder, "baber/piqa/data"))).toEqual(["validation.jsonl"]);
      await expect(download("boolq")).rejects.toThrow("boolq: cannot download aps/super_glue");
    } finally {
      delete process.env.HF_ENDPOINT;
      server.close();
    }
  });
});
