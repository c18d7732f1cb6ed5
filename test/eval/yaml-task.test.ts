import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { Examples } from "../../lib/eval/few-shot.js";
import { RowTemplate } from "../../lib/eval/jinja.js";
import {
  answerRequests,
  likelihoodRequests,
  rightChoice,
  wholeText,
} from "../../lib/eval/prompt.js";
import { parsePythonLiteral, pythonRepr } from "../../lib/eval/python-literal.js";
import { pythonRegExp } from "../../lib/eval/python-regexp.js";
import { selectTasks } from "../../lib/eval/registry.js";
import { TaskRows } from "../../lib/eval/rows.js";
import type {
  ChoiceTask,
  ContinuationTask,
  GenerationTask,
  Row,
  Task,
  TextTask,
} from "../../lib/eval/task.js";
import { yamlTask } from "../../lib/eval/yaml-task.js";

const folder = mkdtempSync(join(tmpdir(), "yaml-task-"));
afterAll(() => rmSync(folder, { recursive: true }));

function file(name: string, text: string): string {
  writeFileSync(join(folder, name), text);
  return join(folder, name);
}

const read = async <T extends Task>(text: string): Promise<T> =>
  (await yamlTask(file("task.yaml", text))) as T;

const bare = { examples: [], description: "" };

const head = "task: own\ndataset_path: own/set\ntest_split: test\n";

describe("a YAML task", () => {
  test("of choices has templates, columns and an included file", async () => {
    file(
      "base",
      'output_type: multiple_choice\ndoc_to_text: "Q: {{question.strip()}}\\nA:"\n' +
        'doc_to_choice: "{{choices.text}}"\nmetric_list:\n  - metric: acc\n    aggregation: mean\n',
    );
    const task = await read<ChoiceTask>(
      `${head}include: base\ntag:\n  - some\ndoc_to_target: "{{choices.label.index(key)}}"\n` +
        "target_delimiter: '>'\nmetadata:\n  version: 2.0\n",
    );
    const row = {
      question: "\x1c why?\n",
      choices: { text: ["it's", '"x"\n'], label: ["A", "B"] },
      key: "B",
    };
    expect(likelihoodRequests(task, row, bare)).toEqual([
      { prompt: "Q: why?\nA:", continuation: ">it's" },
      { prompt: "Q: why?\nA:", continuation: '>"x"\n' },
    ]);
    expect(rightChoice(task, row)).toBe(1);
    expect(task.metrics).toEqual(["acc"]);
    expect(task).toMatchObject({ name: "own", version: 2, data: { split: "test" } });
  });

  test("of choices may compare prompts, and have a list of choices and texts as targets", async () => {
    const prompts = await read<ChoiceTask>(
      `${head}output_type: multiple_choice\ndoc_to_text: "{{right}}"\n` +
        'doc_to_choice: "{{[a, b]}}"\ndoc_to_target: rest\n',
    );
    const row = { right: 1, a: "one", b: "two", rest: "end" };
    expect(likelihoodRequests(prompts, row, bare)).toEqual([
      { prompt: "one", continuation: " end" },
      { prompt: "two", continuation: " end" },
    ]);
    expect(rightChoice(prompts, row)).toBe(1);
    const texts = await read<ChoiceTask>(
      `${head}output_type: multiple_choice\ndoc_to_text: a\ndoc_to_choice: ["no", "yes"]\ndoc_to_target: b\n`,
    );
    expect(rightChoice(texts, { a: "?", b: "yes" })).toBe(1);
    expect(rightChoice(texts, { a: "?", b: true })).toBe(1);
    expect(() => rightChoice(texts, { a: "?", b: "maybe" })).toThrow(
      'own: a row: expected an index or one of ["no","yes"] for doc_to_target, got "maybe"',
    );
  });

  test("of a continuation and of a whole text", async () => {
    const text =
      "doc_to_text: \"{{text.split(' ')[:-1]|join(' ')}}\"\n" +
      "doc_to_target: \"{{' '+text.split(' ')[-1]}}\"\n";
    const word = await read<ContinuationTask>(`${head}output_type: loglikelihood\n${text}`);
    expect(likelihoodRequests(word, { text: "a  b c" }, bare)).toEqual([
      { prompt: "a  b", continuation: " c" },
    ]);
    expect(word.metrics).toEqual(["perplexity", "acc"]);
    const page = await read<TextTask>(
      `${head}output_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: "{{page}}\\n"\n`,
    );
    expect(wholeText(page, { page: "1\n" })).toBe("1\n\n");
  });

  test("of answers has filters and exact_match with its options", async () => {
    const task = await read<GenerationTask>(
      `${head}doc_to_text: "{{q}}"\ndoc_to_target: "{{a}}"\nnum_fewshot: 1\nrepeats: 2\n` +
        'fewshot_config:\n  sampler: first_n\n  samples:\n    - {q: "1+1", a: "2"}\n' +
        'generation_kwargs:\n  until: ["\\n"]\n  max_gen_toks: 7\n  do_sample: false\n  temperature: 0.0\n' +
        "metric_list:\n  - metric: exact_match\n    ignore_case: true\n    ignore_punctuation: true\n" +
        'filter_list:\n  - name: get\n    filter:\n      - function: regex\n        regex_pattern: "is (.*)(?=.)"\n' +
        "      - function: take_first\n",
    );
    const row = { q: "2+2", a: "Four!" };
    const examples = await Examples.open(task, new TaskRows());
    const requests = answerRequests(task, row, examples.next(row), 5);
    const request = {
      prompt: "1+1 2\n\n2+2",
      until: ["\n"],
      maxTokens: 7,
      temperature: 0,
      topP: 1,
    };
    expect(requests).toEqual([
      { ...request, seed: 5 },
      { ...request, seed: 6 },
    ]);
    const [filter] = task.filters ?? [];
    expect(filter?.apply(row, "It is  four. ")).toBe("four.");
    expect(filter?.apply(row, "no")).toBe("[invalid]");
    expect(await task.score(row, ["FOUR"], null)).toEqual({ exact_match: 1 });
    expect(await task.score(row, ["five"], null)).toEqual({ exact_match: 0 });
  });

  test("has files of its own, a description by template and the sampler of the harness", async () => {
    const rows = [
      { s: "x", l: 0 },
      { s: "y", l: 1 },
    ]
      .map((row) => JSON.stringify(row))
      .join("\n");
    const path = file("rows.jsonl", rows);
    const task = await read<ChoiceTask>(
      "task: own\ndataset_path: json\n" +
        `dataset_kwargs:\n  data_files:\n    validation: ${path}\n` +
        "validation_split: validation\noutput_type: multiple_choice\ndoc_to_text: s\n" +
        'doc_to_target: l\ndoc_to_choice: ["a", "b"]\ndescription: "About {{s}}.\\n"\n',
    );
    expect(task.fewShot).toMatchObject({ sampler: "random", leavesOutQuestion: true });
    const data = new TaskRows();
    const [row] = (await data.questionsOf(task)) as [Row];
    const shown = (await Examples.open(task, data, { count: 1 })).next(row);
    expect(likelihoodRequests(task, row, shown)[0]).toEqual({
      prompt: "About x.\ny b\n\nx",
      continuation: " a",
    });
  });

  test("is selected by its path", async () => {
    const path = file("chosen.yaml", `${head}doc_to_text: q\ndoc_to_target: a\n`);
    expect((await selectTasks(path)).tasks.map(({ name }) => name)).toEqual(["own"]);
  });

  test("has the functions of published tasks, unless their source was changed", async () => {
    const text =
      "task: hellaswag\ndataset_path: Rowan/hellaswag\noutput_type: multiple_choice\n" +
      'validation_split: validation\nprocess_docs: !function utils.process_docs\ndoc_to_text: "{{query}}"\n' +
      'doc_to_target: "{{label}}"\ndoc_to_choice: "choices"\n';
    const task = await read<ChoiceTask>(text);
    const row = {
      activity_label: "A",
      ctx_a: "b.",
      ctx_b: "c",
      endings: ["[x]d", "e"],
      label: "1",
    };
    const [made] = task.prepareRows?.([row]) ?? [];
    expect(likelihoodRequests(task, made as Row, bare)[0]).toEqual({
      prompt: "A: b. C",
      continuation: " d",
    });
    expect(rightChoice(task, made as Row)).toBe(1);
    file("utils.py", "def process_docs(dataset): return dataset\n");
    await expect(read(text)).rejects.toThrow("got a changed one");
    rmSync(join(folder, "utils.py"));
  });
});

describe("errors name file and setting", () => {
  const choice = `${head}output_type: multiple_choice\ndoc_to_text: a\ndoc_to_target: b\n`;
  test.each([
    [
      `${choice}doc_to_choice: !function utils.mine\n`,
      "doc_to_choice: expected a template or a function of a published task, got !function utils.mine",
    ],
    [choice, "expected the choices for doc_to_choice, got undefined"],
    [`${choice}doc_to_choice: "{{a"\n`, "expected a Jinja template"],
    [`${choice}doc_to_choices: [x]\n`, "got doc_to_choices; did you mean doc_to_choice?"],
    [`${choice}gen_prefix: x\n`, "expected settings that are supported, got gen_prefix"],
    [
      `${choice}doc_to_choice: [x]\nmetric_list: [{metric: f1}]\n`,
      'expected acc or acc_norm for metric_list, got "f1"',
    ],
    [
      `${choice}doc_to_choice: [x]\nfewshot_config: {sampler: mine}\n`,
      'expected default or first_n for fewshot_config.sampler, got "mine"',
    ],
    [`${choice}doc_to_choice: [x]\nunsafe_code: true\n`, "expected no unsafe_code"],
    ["group: mine\ntask: [a]\n", "got a group"],
    ["task: own\ndataset_path: x\n", "expected a test_split or a validation_split"],
    [
      `${head}output_type: other\ndoc_to_text: a\ndoc_to_target: b\n`,
      'for output_type, got "other"',
    ],
    [
      `${head}doc_to_text: a\ndoc_to_target: b\nfilter_list: [{name: x, filter: [{function: mine}]}]\n`,
      'for filter_list, got "mine"',
    ],
    [
      `${head}doc_to_text: a\ndoc_to_target: b\ngeneration_kwargs: {beams: 2}\n`,
      "got generation_kwargs.beams",
    ],
  ])("%#", async (text, message) => {
    await expect(read(text)).rejects.toThrow(message);
    await expect(read(text)).rejects.toThrow(`[evaluate] ${join(folder, "task.yaml")}: `);
  });

  test("for what is no YAML, a missing file and a circle", async () => {
    await expect(read("a: [")).rejects.toThrow(/task\.yaml: .* problem/);
    await expect(read("- 1")).rejects.toThrow("expected a task's settings by name");
    await expect(yamlTask(join(folder, "none.yaml"))).rejects.toThrow("cannot read");
    await expect(read("include: task.yaml")).rejects.toThrow("do not include each other");
  });

  test("for a row that a template does not fit", async () => {
    const task = await read<ChoiceTask>(
      `${choice.replace("text: a", 'text: "{{c.d}}"')}doc_to_choice: [x]\n`,
    );
    expect(() => likelihoodRequests(task, { a: 1 }, bare)).toThrow(
      '[evaluate] own: a row: template "{{c.d}}": c is undefined',
    );
    expect(() => likelihoodRequests(task, { c: {} }, bare)).toThrow("c.d is undefined");
  });

  test("for a number of answers or tokens that cannot be", async () => {
    const file = join(folder, "numbers.yaml");
    const start = `${head}doc_to_text: a\ndoc_to_target: b\n`;
    for (const [wrong, field] of [
      ["repeats: 0", "repeats"],
      ["generation_kwargs: {max_gen_toks: 1.5}", "maxTokens"],
    ]) {
      writeFileSync(file, `${start}${wrong}\n`);
      await expect(selectTasks(file)).rejects.toThrow(`${file}.${field}`);
    }
  });

  test("for a column of choices that the row lacks", async () => {
    const task = await read<ChoiceTask>(`${choice}doc_to_choice: options\n`);
    expect(() => likelihoodRequests(task, { a: "x", b: 0 }, bare)).toThrow(
      'a row: expected one of the columns a, b for doc_to_choice, got "options"',
    );
  });

  test("for a pattern that never ends on an answer", async () => {
    const task = await read<GenerationTask>(
      `${head}doc_to_text: a\ndoc_to_target: b\n` +
        "metric_list: [{metric: exact_match, regexes_to_ignore: ['^(y+)+$']}]\n" +
        "filter_list: [{name: x, filter: [{function: regex, regex_pattern: '(x+)+$'}]}]\n",
    );
    const endless = (letter: string) => `${letter.repeat(40)}!`;
    const [filter] = task.filters ?? [];
    expect(() => filter?.apply({}, endless("x"))).toThrow('pattern "(x+)+$": it takes more than');
    expect(() => task.score({ b: "c" }, [endless("y")], null)).toThrow("it takes more than");
    expect(filter?.apply({}, "no xx")).toBe("xx");
  });
});

test.each([
  ["{% set n = namespace(t=a) %}{% for i in range(60) %}{% set n.t = n.t + n.t %}{% endfor %}"],
  [
    "{% set n = namespace(t=a) %}{% for i in range(40) %}{% set n.t = n.t.replace('e', 'eeeeeeee') %}{% endfor %}",
  ],
])("a template's text may not grow without end: %j", (template) => {
  expect(() => new RowTemplate(template).render({ a: "see" })).toThrow(
    "it makes a text of more than 16777216 characters",
  );
});

test("the error of a long template shows its beginning", () => {
  const deep = `{{ ${"(".repeat(20_000)}1${")".repeat(20_000)} }}`;
  const failed = (() => {
    try {
      return new RowTemplate(deep).render({});
    } catch (error) {
      return (error as Error).message;
    }
  })();
  expect(failed).toMatch(/^expected a Jinja template, got "\{\{ \(\(/);
  expect(failed.length).toBeLessThan(400);
});

// The expected texts are those of Jinja 3.1 with StrictUndefined and keep_trailing_newline.
test.each([
  ["{{a}}\n", { a: 1 }, "1\n"],
  ["{{a}}\n\n", { a: "x" }, "x\n\n"],
  ["{% if a %}\n yes{% endif %}\n", { a: true }, "\n yes\n"],
  [
    "{{a}} {{b}} {{c}} {{d}}",
    { a: true, b: null, c: [1, "it's", '"'], d: { k: 0.5 } },
    `True None [1, "it's", '"'] {'k': 0.5}`,
  ],
  ["{{ 'ABCD'[k|int - 1] if k|string in '1234' else k }}", { k: "2" }, "B"],
  ["{{ a.strip('x') }}|{{ a.lstrip() }}|{{ b.index('c') }}", { a: " xa", b: "abc" }, " xa|xa|2"],
  ["{{ a is defined }} {{ b is defined }} {{ b|default('z') }}", { a: 1 }, "True False z"],
  ["{% for x in a %}{{ loop.index }}.{{ x }} {% endfor %}", { a: ["p", "q"] }, "1.p 2.q "],
  ["{{ a[0] }}{{ a[-1] }}{{ a|length }}", { a: ["p", "q"] }, "pq2"],
])("template %j", (template, row, expected) => {
  expect(new RowTemplate(template).render(row)).toBe(expected);
});

test.each(["{{ b }}", "{{ a.b }}", "{{ a['b'] }}", "{% if b %}x{% endif %}", "{{ b.c }}"])(
  "%s with an undefined name is an error",
  (template) => {
    expect(() => new RowTemplate(template).render({ a: {} })).toThrow("undefined");
  },
);

describe("Python's literals", () => {
  test.each([
    ["['it\\'s', \"\\x41\\u00e9\\U0001F600\", 'a' 'b',]", ["it's", "Aé😀", "ab"]],
    ["(1, -2.5, 1e3, None, True, [])", [1, -2.5, 1000, null, true, []]],
    ["{'a': [1], 2: 'b'}", { a: [1], 2: "b" }],
  ])("%s", (text, value) => {
    expect(parsePythonLiteral(text)).toEqual(value);
  });

  test("come back from what repr writes", () => {
    const texts = ["it's", '"', "'\"", "\\n\n\t\r\0\x7f\u00a0\u2028\ufeff😀\ud800", "é", ""];
    expect(parsePythonLiteral(pythonRepr(texts))).toEqual(texts);
    expect(pythonRepr(["it's", "a\n\x00\u200b", "'\""])).toBe(
      `["it's", 'a\\n\\x00\\u200b', '\\'"']`,
    );
  });

  test.each(["['a'", "['a]", "[a]", "f()", "1 2", "", "['\\x4']"])("%s is none", (text) => {
    expect(() => parsePythonLiteral(text)).toThrow("of the Python value");
  });
});

test.each([
  ["(?i)a.b$", "A\u2028B\n", ["A\u2028B"]],
  ["\\s+", "a\x1cb\ufeffc", ["\x1c"]],
  ["(?P<n>\\-?[0-9\\.\\,]+)", "x -1,000.5", ["-1,000.5"]],
  ["\\bé\\w*\\Z", "an été", ["été"]],
  ["[^\\]]+", "a]b", ["a", "b"]],
])("the pattern %s of Python", (source, text, matches) => {
  expect(text.match(pythonRegExp(source))).toEqual(matches);
});

test("a pattern that JavaScript lacks is an error", () => {
  expect(() => pythonRegExp("(?x)a")).toThrow("no such flag x");
  expect(() => pythonRegExp("(?P=n)")).toThrow("expected a pattern that JavaScript has too");
});

test.each([
  "{% for i in range(2000) %}{% for j in range(2000) %}{% endfor %}{% endfor %}",
  "{% for i in range(99999999) %}x{% endfor %}",
  "{% for i in range(99999) %}{{ list + list }}{% endfor %}",
])("a template that does not end soon is an error: %s", (source) => {
  expect(() => new RowTemplate(source).render({ list: [1, 2, 3] })).toThrow(/template .*: /);
});

test("a name that no object takes as a key is an error, not a score that is lost", async () => {
  const named = file(
    "named.yaml",
    `${head.replace("own", "__proto__")}doc_to_text: a\ndoc_to_target: b\n`,
  );
  await expect(selectTasks(named)).rejects.toThrow("expected another name than __proto__");
  const filtered = file(
    "filtered.yaml",
    `${head}output_type: generate_until\ndoc_to_text: a\ndoc_to_target: b\n` +
      "generation_kwargs: { until: ['.'] }\nmetric_list:\n  - metric: exact_match\n    aggregation: mean\n" +
      "filter_list:\n  - name: __proto__\n    filter:\n      - function: take_first\n",
  );
  await expect(selectTasks(filtered)).rejects.toThrow("expected another name than __proto__");
});
