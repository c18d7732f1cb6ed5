export const splitRuleNames = ["llama3", "qwen2", "gpt2"] as const;
export type SplitRuleName = (typeof splitRuleNames)[number];

/** A rule that cuts a text into words. */
interface SplitRule {
  /** The expression in tokenizer.json, in Oniguruma's syntax. */
  readonly written: string;
  /** The equal expression in JavaScript; the flags are `u` and `y`. It matches at every character. */
  readonly expression: string;
}

// JavaScript's \s lacks U+0085 and has U+FEFF. Before Node 23 an expression cannot ignore case in a
// part; the long s is the one further character that equals an ASCII letter of these endings.
const space = "\\p{White_Space}";
const noSpace = "\\P{White_Space}";
const endings =
  "'(?:[sS\\u017F]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|";
const writtenEndings = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|";
const rest = `| ?[^${space}\\p{L}\\p{N}]+[\\r\\n]*|${space}*[\\r\\n]+|${space}+(?!${noSpace})|${space}+`;
const writtenRest = "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const gpt2Words = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+|";

/** The rules by name. */
export const splitRules: Readonly<Record<SplitRuleName, SplitRule>> = {
  llama3: {
    written: `${writtenEndings}\\p{N}{1,3}${writtenRest}`,
    expression: `${endings}\\p{N}{1,3}${rest}`,
  },
  qwen2: {
    written: `${writtenEndings}\\p{N}${writtenRest}`,
    expression: `${endings}\\p{N}${rest}`,
  },
  gpt2: {
    written: `${gpt2Words} ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+`,
    expression: `${gpt2Words} ?[^${space}\\p{L}\\p{N}]+|${space}+(?!${noSpace})|${space}+`,
  },
};
