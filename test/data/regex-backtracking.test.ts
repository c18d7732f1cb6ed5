import { readFileSync } from "node:fs";
import { expect, it } from "vitest";
import { mayBacktrackLong, regexesIn } from "../../lib/data/regex-backtracking.js";

const letters = "\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}";
const gpt4o = `[^\\r\\n\\p{L}\\p{N}]?[${letters}]*[\\p{Ll}\\p{M}]+(?i:'s|'t|'re)?|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+`;
const llama3 =
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

it.each([
  gpt4o,
  llama3,
  "a*b",
  "(?:ab)+c",
  "\\s+$",
  " {2,}",
  "a++b",
  "[]a]+b",
  "[^\\]]*x",
  "(?:a*b)?c",
  "(?:\\p{L}+)?x",
  "a|b*",
  "",
])("%s backtracks no longer than a text", (pattern) => {
  expect(mayBacktrackLong(pattern)).toBe(false);
});

it.each([
  "(a+)+$",
  "(a|aa)+$",
  "(\\w+\\s?)*$",
  "(a?){30}a{30}",
  "a*a*b",
  ".*.*=.*",
  "(?=a*a*b)c",
  "(?:a*b)?c*d",
  "(x)\\1",
  // Patterns that are not understood.
  "(",
  "a)",
  "[a",
  "*a",
  "(?(1)a|b)",
  `${"(?:".repeat(40)}a${")".repeat(40)}`,
])("%s may backtrack for long", (pattern) => {
  expect(mayBacktrackLong(pattern)).toBe(true);
});

it("finds the patterns of a tokenizer", () => {
  const file = new URL("../../assets/quickstart/tokenizer.json", import.meta.url);
  const found = regexesIn(JSON.parse(readFileSync(file, "utf8")).pre_tokenizer);
  expect(found).toHaveLength(1);
  expect(mayBacktrackLong(found[0] as string)).toBe(false);
});
