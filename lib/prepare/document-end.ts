import { TokenizerError } from "../core/errors.js";
import { optionValue } from "../core/option-names.js";
import type { Tokenizer } from "../data/tokenizer.js";

/** The token behind each document. */
export interface DocumentEnd {
  /** How dataset.json names it. */
  kind: "none" | "eos" | "token";
  /** Its id; null for none. */
  id: number | null;
}

/** Special tokens that an error lists. */
const mostNames = 12;

/**
 * Finds the token that the option `documentEnd` names.
 * @throws TokenizerError if the tokenizer has no such token, or if text may spell it
 */
export function documentEndOf(named: string, tokenizer: Tokenizer): DocumentEnd {
  if (named === "none") return { kind: "none", id: null };
  if (named === "eos") return { kind: "eos", id: tokenizer.eosId };
  const id = tokenizer.idOf(named);
  if (id === tokenizer.eosId) return { kind: "eos", id };
  if (id !== null && tokenizer.isSpecial(id)) return { kind: "token", id };
  const names = tokenizer.specialIds.map((one) => tokenizer.token(one));
  const list = names.length > mostNames ? [...names.slice(0, mostNames), "…"] : names;
  const problem =
    id === null
      ? "is no token of it"
      : "is no special token of it, so that a text may spell it; name it under " +
        "additional_special_tokens in tokenizer_config.json";
  throw new TokenizerError(
    `[prepare] ${tokenizer.file}: ${optionValue("documentEnd", named)} ${problem}. Its special tokens: ${list.join(" ")}`,
  );
}
