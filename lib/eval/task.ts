import type { ProgramResult } from "./sandbox.js";

/**
 * A row of a data set: one object of a JSON Lines file, or one row of a Parquet file. Column names
 * are the data set's own.
 */
export type Row = Readonly<Record<string, unknown>>;

/** Where the rows of a task lie, in the layout of the Hugging Face Hub. */
export interface TaskData {
  /** Name on the Hub, such as `ybisk/piqa`. */
  dataset: string;
  /** Configuration of the data set, such as `ARC-Easy`. */
  config?: string;
  /** Revision on the Hub. Default: `main`, which lm-evaluation-harness reads too. */
  revision?: string;
  /** Folder below `--data`, such as `piqa`. Default: the task's name. */
  folder?: string;
  /** Files of the splits by split. They replace the data set below `--data`. */
  files?: Readonly<Record<string, string>>;
  /** Split that is scored. */
  split: string;
  /** Number of rows of that split as published. A score of another number is marked. */
  publishedRows?: number;
  /** Split that few-shot examples are drawn from. Default: the scored one. */
  fewShotSplit?: string;
  /** Columns that every row has; a row without one of them is an error that names file and row. */
  columns: readonly string[];
  /**
   * Rows of a file that belong to the task, for files that several tasks share. Files in the folder
   * of a configuration are not shared.
   */
  keep?(row: Row): boolean;
}

/** A text file with the examples of a task, and with its description. */
export interface ExampleFile {
  /** Path below `--data`, such as `bbh/cot-prompts/navigate.txt`. */
  path: string;
  /** Address that the file can be had from, for the error when it is missing. */
  source: string;
  /**
   * Description and examples from the file's text. The examples have the columns that the task's
   * `prompt` and `target` read.
   * @throws DataError for a text without them; the message names `file`
   */
  read(text: string, file: string): { description: string; examples: readonly Row[] };
}

/** How a task's prompt shows solved examples before the question. */
export interface FewShot {
  /** Number of examples. The option `fewShot` of an evaluation replaces it. */
  count: number;
  /**
   * Choice of the examples: the first rows of their split, or a sample that Python's
   * `random.Random(seed)` draws for each question anew.
   */
  sampler: "first" | "random";
  /**
   * Leaves the question out of its own examples. The random sampler then draws one example more,
   * whether the question is among them or not. lm-evaluation-harness does so wherever examples and
   * questions have the same setting, which includes "none". Default: true if the examples come from
   * the scored split.
   */
  leavesOutQuestion?: boolean;
  /** Text between an example's prompt and its answer. Default: the task's `targetDelimiter`. */
  targetDelimiter?: string;
  /** Prompt of an example. Default: the one that the task has for questions. */
  prompt?(row: Row): string;
  /** Answer of an example. Default: the task's own. */
  target?(row: Row): string;
  /** Text between two examples, and between the last one and the question. Default: "\n\n". */
  delimiter?: string;
  /** Fixed examples. They replace the rows of the split. */
  examples?: readonly Row[];
  /** File with fixed examples and the description. It replaces `examples` and `description`. */
  file?: ExampleFile;
}

/** Fields that all tasks share. */
interface TaskBase {
  /** Name, as in lm-evaluation-harness: `arc_easy`. */
  name: string;
  /** Name in tables. Default: `name`. */
  alias?: string;
  /** Version of the task in lm-evaluation-harness. It changes whenever scores change. */
  version: number;
  data: TaskData;
  /** Default: no examples. */
  fewShot?: FewShot;
  /** Text before the first example, or a function of the question. Default: none. */
  description?: string | ((row: Row) => string);
  /** Text between prompt and answer. Default: " ". */
  targetDelimiter?: string;
  /**
   * Rows as the task uses them: changes columns, or leaves rows out. It is called with one row at a
   * time, so that an error names the row.
   */
  prepareRows?(rows: Row[]): Row[];
  /** Name of the harness's YAML or group file, for `configs` of the results. */
  group?: string;
}

/** A question whose answer is the most likely one of several texts. */
export interface ChoiceTask extends TaskBase {
  kind: "choice";
  /**
   * The prompt. For tasks that compare prompts instead of answers (WinoGrande), the prompts of all
   * choices, and `choices` has the one text that follows each of them.
   */
  prompt(row: Row): string | readonly string[];
  /** The answers to choose from. */
  choices(row: Row): readonly string[];
  /** Index of the right choice. */
  answer(row: Row): number;
  metrics: readonly ("acc" | "acc_norm")[];
}

/** A text whose likelihood after a prompt is measured (LAMBADA). */
export interface ContinuationTask extends TaskBase {
  kind: "continuation";
  /** The text before the one that counts. */
  prompt(row: Row): string;
  /** The text whose likelihood counts. */
  continuation(row: Row): string;
  metrics: readonly ("perplexity" | "acc")[];
}

/** A measure of a text's likelihood: exp(-log p / units), and bits for `bits_per_byte`. */
export type TextMetric =
  | "word_perplexity"
  | "byte_perplexity"
  | "bits_per_byte"
  | "token_perplexity";

/** A whole text whose likelihood is measured (WikiText, any text file). */
export interface TextTask extends TaskBase {
  kind: "text";
  /** The document whose likelihood counts. */
  text(row: Row): string;
  /** Text whose words and bytes are counted. Default: `text`. */
  counted?(row: Row): string;
  metrics: readonly TextMetric[];
}

/** A question that the model answers by writing. */
export interface GenerationTask extends TaskBase {
  kind: "generation";
  /** The text that the model continues. */
  prompt(row: Row): string;
  /** The text that a few-shot example shows as its answer. */
  target(row: Row): string;
  /** The answer ends before the first of these texts. */
  until: readonly string[];
  /** Longest answer, in tokens. */
  maxTokens: number;
  /** Answers per question. Default: 1. */
  repeats?: number;
  /** 0 chooses the most likely token. Default: 0. */
  temperature?: number;
  topP?: number;
  /**
   * The answers as the metrics see them. The name is the harness's filter. Default: "none", the
   * text unchanged.
   */
  filters?: readonly AnswerFilter[];
  /**
   * Values of each metric for one question, from its filtered answers.
   * @param runPrograms null unless the evaluation allows it
   */
  score(
    row: Row,
    answers: readonly string[],
    runPrograms: RunPrograms | null,
  ): Promise<Scores> | Scores;
  metrics: readonly string[];
  /** Whether `score` runs programs that the model wrote. */
  runsCode?: boolean;
}

/** Runs Python programs in a sandbox. @returns one result for each program, in their order */
export type RunPrograms = (programs: readonly string[]) => Promise<ProgramResult[]>;

/** A step that takes the part of an answer that is compared. */
export interface AnswerFilter {
  name: string;
  /** The part of an answer that is compared. */
  apply(row: Row, answer: string): string;
}

/** A task of any kind. */
export type Task = ChoiceTask | ContinuationTask | TextTask | GenerationTask;

/** Values of metrics by name. */
export type Scores = Readonly<Record<string, number>>;

/** Several tasks under one name, with the mean of their scores. */
export interface TaskGroup {
  name: string;
  /** Name in tables. Default: `name`. */
  alias?: string;
  /** Version of the group in lm-evaluation-harness, if it has one. */
  version?: number;
  /** Tasks and groups by name, in the order of the table. */
  members: readonly string[];
  /**
   * Metrics that the group averages, each over the members that have it. None: the group is only a
   * name for its members.
   */
  mean?: {
    metrics: readonly string[];
    /** Weights members by their number of questions, as the harness does for MMLU. */
    weighted: boolean;
    /**
     * Name of one mean over all members: of each, the first of `metrics` that it has. The published
     * averages of commonsense tasks are so: `acc_norm` where there is one, `acc` elsewhere.
     */
    as?: string;
  };
}
