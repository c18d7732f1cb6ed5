import { DataError } from "../core/errors.js";
import { exactMatch } from "./exact-match.js";
import { pythonRegExp } from "./python-regexp.js";
import { strip } from "./python-text.js";
import type { AnswerFilter, GenerationTask, Row } from "./task.js";
import { withinTime } from "./time-limit.js";
import { wrongValue } from "./yaml-fields.js";
import type { YamlSettings } from "./yaml-file.js";

// The settings of a YAML task of the kind generate_until: how answers are written, filtered and
// scored.

type GenerationFields = Pick<
  GenerationTask,
  "until" | "maxTokens" | "temperature" | "topP" | "repeats" | "filters" | "score" | "metrics"
>;

/** Length of an answer where a task names none. */
const defaultTokens = 256;

/** @param references all texts that count as right for a row */
export function generationFields(
  settings: YamlSettings,
  references: (row: Row) => readonly string[],
): GenerationFields {
  const { repeats } = settings;
  if (settings.process_results !== undefined) {
    throw new DataError("expected no process_results for generate_until: Python code is not run");
  }
  const filters = filtersOf(settings.filter_list);
  const isRight = exactMatch(exactMatchOptions(settings.metric_list));
  return {
    ...writingOf(settings),
    ...(typeof repeats === "number" && { repeats }),
    ...(filters && { filters }),
    score: (row, answers) => ({
      exact_match: Math.max(...references(row).map((right) => isRight(answers[0] ?? "", right))),
    }),
    metrics: ["exact_match"],
  };
}

const writingKeys = new Set([
  "until",
  "max_gen_toks",
  "max_tokens",
  "max_new_tokens",
  "do_sample",
  "temperature",
  "top_p",
]);

function writingOf(
  settings: YamlSettings,
): Pick<GenerationTask, "until" | "maxTokens" | "temperature" | "topP"> {
  const given = (settings.generation_kwargs ?? {}) as Record<string, unknown>;
  const unknown = Object.keys(given).find((key) => !writingKeys.has(key));
  if (unknown !== undefined) {
    throw new DataError(`expected settings that are supported, got generation_kwargs.${unknown}`);
  }
  const { until = settings.fewshot_delimiter ?? "\n\n" } = given;
  const texts = typeof until === "string" ? [until] : until;
  if (!Array.isArray(texts) || !texts.every((text) => typeof text === "string")) {
    throw wrongValue("generation_kwargs.until", "texts", until);
  }
  const number = (key: string, value: unknown): number => {
    if (typeof value === "number" && value >= 0) return value;
    throw wrongValue(`generation_kwargs.${key}`, "a number of at least 0", value);
  };
  const length = given.max_gen_toks ?? given.max_new_tokens ?? given.max_tokens ?? defaultTokens;
  const samples = given.do_sample === true;
  return {
    until: texts,
    maxTokens: number("max_gen_toks", length),
    temperature: samples ? number("temperature", given.temperature ?? 1) : 0,
    topP: samples ? number("top_p", given.top_p ?? 1) : 1,
  };
}

interface FilterStep {
  function?: unknown;
  regex_pattern?: unknown;
  group_select?: unknown;
  fallback?: unknown;
}

function filtersOf(list: unknown): AnswerFilter[] | null {
  if (list === undefined || list === null) return null;
  if (!Array.isArray(list)) throw wrongValue("filter_list", "a list of filters", list);
  return list.map((entry) => {
    const { name, filter } = (entry ?? {}) as { name?: unknown; filter?: unknown };
    if (typeof name !== "string" || !Array.isArray(filter)) {
      throw wrongValue("filter_list", "name and filter", entry);
    }
    const steps = filter.map((step) => stepOf((step ?? {}) as FilterStep));
    return { name, apply: (_, answer) => steps.reduce((text, step) => step(text), answer) };
  });
}

function stepOf(step: FilterStep): (answer: string) => string {
  switch (step.function) {
    case "take_first":
      return (answer) => answer;
    case "remove_whitespace":
      return strip;
    case "lowercase":
      return (answer) => answer.toLowerCase();
    case "uppercase":
      return (answer) => answer.toUpperCase();
    case "regex":
      return regexStep(step);
    default:
      throw wrongValue(
        "filter_list",
        "regex, take_first, remove_whitespace, lowercase or uppercase",
        step.function,
      );
  }
}

/** The text that a pattern finds: its groups' first one with content, or all of it. */
function regexStep({
  regex_pattern: source = String.raw`#### (\-?[0-9\.\,]+)`,
  group_select: select = 0,
  fallback = "[invalid]",
}: FilterStep): (answer: string) => string {
  if (typeof source !== "string" || typeof select !== "number" || typeof fallback !== "string") {
    throw wrongValue("filter_list", "regex_pattern, group_select and fallback", source);
  }
  const pattern = pythonRegExp(source);
  return (answer) => {
    const matches = withinTime(`pattern ${JSON.stringify(source)}`, () => [
      ...answer.matchAll(pattern),
    ]);
    if (matches.length === 0) return fallback;
    const match = matches.at(select);
    if (match === undefined) {
      throw new DataError(`expected a match with number ${select}, got ${matches.length} matches`);
    }
    const [whole, ...groups] = match;
    if (groups.length <= 1) return strip(groups.length === 0 ? whole : (groups[0] ?? ""));
    return strip(groups.find((group) => group !== undefined && group !== "") ?? fallback);
  };
}

function exactMatchOptions(list: unknown): Parameters<typeof exactMatch>[0] {
  const [entry, ...others] = Array.isArray(list) ? list : [{ metric: "exact_match" }];
  const given = (entry ?? {}) as Record<string, unknown>;
  if (others.length > 0 || given.metric !== "exact_match") {
    throw wrongValue("metric_list", "exact_match alone", list);
  }
  const patterns = given.regexes_to_ignore;
  return {
    ignoreCase: given.ignore_case === true,
    ignorePunctuation: given.ignore_punctuation === true,
    ignoreNumbers: given.ignore_numbers === true,
    ...(Array.isArray(patterns) && { ignorePatterns: patterns.map(String) }),
  };
}
