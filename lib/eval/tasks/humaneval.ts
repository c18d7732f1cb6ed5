import { ArgumentError } from "../../core/errors.js";
import { optionName } from "../../core/option-names.js";
import { textColumn } from "../columns.js";
import type { GenerationTask, Row, RunPrograms, Scores } from "../task.js";

/**
 * HumanEval: functions that the model completes from their signature and description. A completion
 * passes if the problem's tests pass. The programs run in a sandbox, and only if the evaluation
 * allows it.
 * @see Chen et al. 2021, arXiv 2107.03374
 */
export const humaneval: GenerationTask = {
  kind: "generation",
  name: "humaneval",
  version: 1,
  data: {
    dataset: "openai/openai_humaneval",
    folder: "humaneval",
    split: "test",
    publishedRows: 164,
    columns: ["prompt", "entry_point", "test"],
  },
  prompt: (row) => textColumn(row, "prompt"),
  target: tests,
  until: ["\nclass", "\ndef", "\n#", "\nif", "\nprint"],
  maxTokens: 1024,
  filters: [{ name: "create_test", apply: (row, answer) => textColumn(row, "prompt") + answer }],
  score: (row, answers, runPrograms) => passRates(row, answers, [1], runPrograms),
  metrics: ["pass@1"],
  runsCode: true,
};

const sampleCounts = [2, 8, 16, 32, 64];

/** HumanEval with 64 sampled completions of each problem. */
export const humaneval64: GenerationTask = {
  ...humaneval,
  name: "humaneval_64",
  repeats: 64,
  temperature: 0.2,
  topP: 0.95,
  score: (row, answers, runPrograms) => passRates(row, answers, sampleCounts, runPrograms),
  metrics: sampleCounts.map((k) => `pass@${k}`),
};

/** The tests of a problem. */
function tests(row: Row): string {
  return `${textColumn(row, "test")}\ncheck(${textColumn(row, "entry_point")})`;
}

async function passRates(
  row: Row,
  functions: readonly string[],
  ks: readonly number[],
  runPrograms: RunPrograms | null,
): Promise<Scores> {
  if (runPrograms === null) {
    throw new ArgumentError(
      `[evaluate] expected ${optionName("allowCodeExecution")}, because humaneval runs programs ` +
        "that the model wrote",
    );
  }
  for (const k of ks) expectSamples(functions.length, k);
  const results = await runPrograms(functions.map((text) => `${text}\n${tests(row)}`));
  const passed = results.filter((result) => result.passed).length;
  return Object.fromEntries(ks.map((k) => [`pass@${k}`, passAtK(results.length, passed, k)]));
}

/**
 * Unbiased estimate of the probability that at least one of k completions passes.
 * @param n completions
 * @param passed completions that passed
 * @throws ArgumentError for fewer than k completions, which give no estimate
 */
export function passAtK(n: number, passed: number, k: number): number {
  expectSamples(n, k);
  if (n - passed < k) return 1;
  let allFail = 1;
  for (let i = n - passed + 1; i <= n; i++) allFail *= 1 - k / i;
  return 1 - allFail;
}

function expectSamples(n: number, k: number): void {
  if (n >= k) return;
  throw new ArgumentError(
    `[evaluate] pass@${k} needs at least ${k} completions of each problem, got ${n}: raise repeats`,
  );
}
