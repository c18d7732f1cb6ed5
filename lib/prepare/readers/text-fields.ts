import { ArgumentError } from "../../core/errors.js";
import { optionValue } from "../../core/option-names.js";
import type { FoundInput } from "./find.js";
import { hasAnswers } from "./input.js";

/**
 * Checks the text fields. One field name may be given for several inputs of which some are text,
 * but for text alone it is a mistake.
 */
export function checkTextFields(
  sources: readonly {
    input: { path: string; textField?: string | undefined };
    found: FoundInput;
  }[],
): void {
  const named = sources.filter(({ input }) => input.textField !== undefined);
  const [first] = named;
  const ofRecords = ({ found: { kind } }: (typeof sources)[number]) =>
    kind === "records" || hasAnswers(kind);
  if (first === undefined || named.some(ofRecords)) return;
  const { path, textField } = first.input;
  throw new ArgumentError(
    `[prepare] ${path}: ${optionValue("textField", textField as string)} needs records, but it was found to hold text`,
  );
}
