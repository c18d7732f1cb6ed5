import { DataError } from "../../core/errors.js";
import { textColumn } from "../columns.js";
import { exactMatch } from "../exact-match.js";
import { strip } from "../python-text.js";
import type { ExampleFile, GenerationTask, Row, TaskGroup } from "../task.js";

const names = `boolean_expressions causal_judgement date_understanding disambiguation_qa
  dyck_languages formal_fallacies geometric_shapes hyperbaton logical_deduction_five_objects
  logical_deduction_seven_objects logical_deduction_three_objects movie_recommendation
  multistep_arithmetic_two navigate object_counting penguins_in_a_table
  reasoning_about_colored_objects ruin_names salient_translation_error_detection snarks
  sports_understanding temporal_sequences tracking_shuffled_objects_five_objects
  tracking_shuffled_objects_seven_objects tracking_shuffled_objects_three_objects web_of_lies
  word_sorting`.split(/\s+/);

const thought = "A: Let's think step by step.";
const matches = exactMatch();

/**
 * BIG-Bench Hard with the published chain-of-thought prompts: three examples that reason before they
 * answer. The answer stands after "the answer is".
 * @see Suzgun et al. 2022, arXiv 2210.09261
 */
export const bbhThoughtTasks: readonly GenerationTask[] = names.map((name) => ({
  ...shared(name, "bbh_cot_fewshot", (target) => target),
  version: 4,
  targetDelimiter: "",
  prompt: (row) => `Q: ${textColumn(row, "input")}\n${thought}\n`,
  maxTokens: 1024,
  filters: [{ name: "get-answer", apply: (_, answer) => statedAnswer(answer) }],
}));

/** BIG-Bench Hard with three examples that answer at once, as in TinyLlama's paper. */
export const bbhDirectTasks: readonly GenerationTask[] = names.map((name) => ({
  ...shared(name, "bbh_fewshot", finalAnswer),
  version: 2,
  prompt: (row) => `Q: ${textColumn(row, "input")}\nA:`,
  maxTokens: 256,
}));

/** `bbh` is the form with chains of thought. Each question has the same weight. */
export const bbhGroups: readonly TaskGroup[] = [
  { name: "bbh", tasks: bbhThoughtTasks },
  { name: "bbh_cot_fewshot", tasks: bbhThoughtTasks },
  { name: "bbh_fewshot", tasks: bbhDirectTasks },
].map(({ name, tasks }) => ({
  name,
  version: 3,
  members: tasks.map((task) => task.name),
  mean: { metrics: ["exact_match"], weighted: true },
}));

function shared(name: string, group: string, targetOf: (target: string) => string) {
  return {
    kind: "generation",
    name: `${group}_${name}`,
    group,
    data: {
      dataset: "SaylorTwift/bbh",
      config: name,
      folder: "bbh",
      split: "test",
      columns: ["input", "target"],
    },
    fewShot: { count: 3, sampler: "first", file: exampleFile(name, targetOf) },
    target: (row: Row) => textColumn(row, "target"),
    until: ["</s>", "Q", "\n\n"],
    score: (row: Row, [answer = ""]: readonly string[]) => {
      return { exact_match: matches(answer, textColumn(row, "target")) };
    },
    metrics: ["exact_match"],
  } as const;
}

function exampleFile(name: string, targetOf: (target: string) => string): ExampleFile {
  const path = `cot-prompts/${name}.txt`;
  return {
    path: `bbh/${path}`,
    source: `https://raw.githubusercontent.com/suzgunmirac/BIG-Bench-Hard/main/${path}`,
    read: (text, file) => {
      const { description, examples } = readThoughts(text, file);
      const rows = examples.map(({ input, target }) => ({ input, target: targetOf(target) }));
      return { description, examples: rows };
    },
  };
}

/** Reads a published prompt: a notice, a line of dashes, the description, and three examples. */
function readThoughts(text: string, file: string) {
  const [, body = text] = text.split(/^-{5,}\r?\n/m);
  const [description = "", ...questions] = body.replaceAll("\r\n", "\n").split(/(?<=\n\n)Q: /);
  const examples = questions.map((question) => {
    const [input = "", ...answer] = question.split(`\n${thought}`);
    // One published file has a space where the others have a line break.
    return { input, target: answer.join(`\n${thought}`).slice(1).trimEnd() };
  });
  if (examples.length === 3 && examples.every(({ target }) => finalAnswer(target) !== target)) {
    return { description, examples };
  }
  throw new DataError(
    `[evaluate] ${file}: expected a description and three examples, each "Q: …", ` +
      `"${thought} …", and "So the answer is …" at the end, got ${examples.length} examples`,
  );
}

/** The last answer of a chain of thought: "So the answer is (A)." gives "(A)". */
function finalAnswer(target: string): string {
  const start = target.lastIndexOf("the answer is ");
  return start < 0 ? target : target.slice(start + 14).replace(/\.$/, "");
}

/** The rest of the first line after "the answer is", without its last character. */
function statedAnswer(answer: string): string {
  const [, found] = /(?<=the answer is )([^\n]*)[^\n]/u.exec(answer) ?? [];
  return found === undefined ? "[invalid]" : strip(found);
}
