import { createRequire } from "node:module";
import type * as tokenizers from "tokenizers";
import { TokenizerError } from "../core/errors.js";

export type HuggingFaceTokenizer = tokenizers.Tokenizer;

const require = createRequire(import.meta.url);

/**
 * The `tokenizers` package. It is loaded with the first tokenizer, because its native part may be
 * missing: everything that needs no tokenizer then still works.
 * @throws TokenizerError saying how to install it again
 */
export function tokenizersPackage(): typeof tokenizers {
  try {
    const loaded = require("tokenizers") as typeof tokenizers;
    if (typeof loaded.Tokenizer?.fromString === "function") return loaded;
    throw new Error("it has no Tokenizer.fromString");
  } catch (cause) {
    throw new TokenizerError(
      `[tokenizer] the npm package "tokenizers" cannot be loaded: ${reasonOf(cause as Error)}. It needs its native part ` +
        `for ${process.platform}-${process.arch}: install again on this machine (rm -rf node_modules && npm install)`,
      { cause },
    );
  }
}

/**
 * The innermost cause. It stems from the first file that was tried, and is the most informative.
 */
function reasonOf(error: Error): string {
  let inner: unknown = error;
  while (inner instanceof Error && inner.cause instanceof Error) inner = inner.cause;
  return String((inner as Error).message).split("\n")[0] as string;
}
