import type { DocumentOptions } from "../model/documents.js";
import type { Tensor } from "../tensor.js";

/** The recipe's `data.documents`; undefined: documents that share a window are not kept apart. */
export type DocumentChoice = { mask: boolean; resetPositions: boolean } | undefined;

/** Whether micro-batches must say where their documents start. */
export function needStarts(documents: DocumentChoice): boolean {
  return documents !== undefined && (documents.mask || documents.resetPositions);
}

/** The same for the model, which refuses a choice without the starts that it needs. */
export function documentOptions(
  documents: DocumentChoice,
  documentStarts: Tensor | undefined,
): DocumentOptions {
  const { mask = false, resetPositions = false } = documents ?? {};
  return { documentStarts, maskDocuments: mask, resetPositions };
}
