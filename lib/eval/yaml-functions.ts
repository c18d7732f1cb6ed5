import { createHash } from "node:crypto";
import { DataError } from "../core/errors.js";
import type { Row } from "./task.js";
import { cleanedHellaswag } from "./tasks/hellaswag.js";
import { joinedPage } from "./tasks/wikitext.js";
import { filledSentences, restOfSentence, winograndeAnswer } from "./tasks/winogrande.js";
import type { NamedFunction } from "./yaml-file.js";

/** A module of functions that published tasks use. */
interface PublishedModule {
  /** SHA-256 of its source in lm-evaluation-harness 0.4.13. */
  sha256: string;
  functions: Readonly<Record<string, unknown>>;
}

/** Counts of words and bytes are those of the column that a task's text is made of. */
export const countsOriginal = (row: Row): string => String(row.page);

/** Modules by the data set of their task. No code of a module is run. */
const published: Readonly<Record<string, PublishedModule>> = {
  "Rowan/hellaswag": {
    sha256: "07d23b60b28f2a4f658dcf8440623a63fe6644854ce9b846a114dde980dc1214",
    functions: { "utils.process_docs": cleanedHellaswag },
  },
  "allenai/winogrande": {
    sha256: "e55327629264a98f1d383fda24645b6779afb53fa0bce2150042b9416b1ae006",
    functions: {
      "preprocess_winogrande.doc_to_text": winograndeAnswer,
      "preprocess_winogrande.doc_to_target": restOfSentence,
      "preprocess_winogrande.doc_to_choice": filledSentences,
    },
  },
  "EleutherAI/wikitext_document_level": {
    sha256: "a44020374b172159bf5be80a64d2c4194c9d5c77284f696ac666361338c8da7d",
    functions: {
      "preprocess_wikitext.wikitext_detokenizer": joinedPage,
      "preprocess_wikitext.process_results": countsOriginal,
    },
  },
};

/**
 * Our function for one that a published task names.
 * @throws DataError for any other function, and for a module that was changed
 */
export function publishedFunction<T>(named: NamedFunction, dataset: string, key: string): T {
  const module = published[dataset];
  const known = module?.functions[named.name];
  if (module === undefined || known === undefined) {
    throw new DataError(
      `${key}: expected a template or a function of a published task, got !function ${named.name} ` +
        `with data set ${dataset}; Python code is not run: write the task as an object instead`,
    );
  }
  const source = named.source();
  if (source !== null && sha256(source) !== module.sha256) {
    throw new DataError(
      `${key}: expected the published source of !function ${named.name}, got a changed one; ` +
        "Python code is not run: write the task as an object instead",
    );
  }
  return known as T;
}

function sha256(text: string): string {
  return createHash("sha256").update(text).digest("hex");
}
