import type { Tensor } from "../core/tensor.js";
import type { DocumentOptions } from "../model/documents.js";

/** What a recipe's `data` says of documents that share a window; undefined: they are not kept apart. */
export type DocumentChoice = { maskDocuments: boolean; resetPositions: boolean } | undefined;

/** Whether micro-batches must say where their documents start. */
export function needStarts(documents: DocumentChoice): boolean {
  return documents !== undefined && (documents.maskDocuments || documents.resetPositions);
}

/** The same for the model, which refuses a choice without the starts that it needs. */
export function documentOptions(
  documents: DocumentChoice,
  documentStarts?: Tensor,
): DocumentOptions {
  const { maskDocuments = false, resetPositions = false } = documents ?? {};
  return { documentStarts, maskDocuments, resetPositions };
}
