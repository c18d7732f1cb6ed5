import { textColumn } from "../columns.js";
import { pythonSpace } from "../python-text.js";
import type { Row, TextTask } from "../task.js";

/**
 * WikiText-2: the likelihood of whole articles of Wikipedia.
 * @see Merity et al. 2016, arXiv 1609.07843
 */
export const wikitext: TextTask = {
  kind: "text",
  name: "wikitext",
  version: 2,
  data: {
    dataset: "EleutherAI/wikitext_document_level",
    config: "wikitext-2-raw-v1",
    split: "test",
    publishedRows: 62,
    columns: ["page"],
  },
  text: joinedPage,
  counted: (row) => textColumn(row, "page"),
  metrics: ["word_perplexity", "byte_perplexity", "bits_per_byte"],
};

/** The inside of a pair of marks, without the spaces next to them. */
const inside = (open: string, close: string): RegExp =>
  new RegExp(`\\${open}${pythonSpace}*([^\\${close}]*?)${pythonSpace}*\\${close}`, "g");

const replacements: readonly (readonly [string | RegExp, string])[] = [
  ["s '", "s'"],
  // The harness puts the text of this pattern into the page, not the digit.
  [/\/' [0-9]\//g, "/'[0-9]/"],
  [" @-@ ", "-"],
  [" @,@ ", ","],
  [" @.@ ", "."],
  [" : ", ": "],
  [" ; ", "; "],
  [" . ", ". "],
  [" ! ", "! "],
  [" ? ", "? "],
  [" , ", ", "],
  [inside("(", ")"), "($1)"],
  [inside("[", "]"), "[$1]"],
  [inside("{", "}"), "{$1}"],
  [inside('"', '"'), '"$1"'],
  [inside("'", "'"), "'$1'"],
  ["= = = =", "===="],
  ["= = =", "==="],
  ["= =", "=="],
  [" \u00b0 ", "\u00b0"],
  [" \n", "\n"],
  ["\n ", "\n"],
  [" N ", " 1 "],
  [" 's", "'s"],
];

/** Undoes WikiText's separation of words and punctuation. The order of the steps matters. */
export function joinedPage(row: Row): string {
  return replacements.reduce(
    (text, [from, to]) => text.replaceAll(from, to),
    textColumn(row, "page"),
  );
}
