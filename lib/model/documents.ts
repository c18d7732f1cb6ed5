import { checkBoolean, checkOptions, checkPerToken } from "../core/check.js";
import { arange } from "../core/create.js";
import { ArgumentError } from "../core/errors.js";
import type { Tensor } from "../core/tensor.js";
import { sub } from "../ops/binary.js";

/** How the documents of a window are kept apart; without it a window is one text, as TinyLlama has it. */
export interface DocumentOptions {
  /**
   * (batch, time) i32: where in the window each token's document starts, as the data's `documentStarts` say. It is needed
   * until backward has run.
   */
  documentStarts?: Tensor | undefined;
  /** Whether a token sees its own document only. Default: true where `documentStarts` is given. */
  maskDocuments?: boolean;
  /** Whether positions count from the start of the document. Default: false. */
  resetPositions?: boolean;
}

/** The first token that each token sees, and its position; undefined: the first of the window, and the token's index. */
export interface Documents {
  mask: Tensor | undefined;
  positions: Tensor | undefined;
}

/**
 * What the layers need of the options.
 * @param ids    (batch, time), the tokens that the starts belong to
 * @param cached whether tokens before them are in a cache
 * @throws ArgumentError, DTypeError, ShapeError, DeviceError for options that do not fit
 */
export function documentsOf(options: DocumentOptions, ids: Tensor, cached: boolean): Documents {
  const op = "Llama";
  checkOptions(op, options, ["documentStarts", "maskDocuments", "resetPositions"]);
  const { documentStarts, maskDocuments = documentStarts !== undefined } = options;
  const { resetPositions = false } = options;
  checkBoolean(op, "maskDocuments", maskDocuments);
  checkBoolean(op, "resetPositions", resetPositions);
  if (documentStarts === undefined) {
    if (!maskDocuments && !resetPositions) return { mask: undefined, positions: undefined };
    throw new ArgumentError(`[${op}] maskDocuments and resetPositions need documentStarts`);
  }
  checkPerToken(op, "documentStarts", documentStarts, ids);
  if (cached) throw new ArgumentError(`[${op}] generation with a cache knows no documents`);
  return {
    mask: maskDocuments ? documentStarts : undefined,
    positions: resetPositions
      ? sub(arange(ids.shape[1] as number, { device: ids.device }), documentStarts)
      : undefined,
  };
}
