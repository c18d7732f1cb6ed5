import { UsageError } from "../core/errors.js";

/** A model of the Hub. */
export interface HubReference {
  /** Owner and name, such as `HuggingFaceTB/SmolLM2-135M`. */
  name: string;
  /** A branch, a tag or a commit. */
  revision: string;
  /** The reference as it was written. */
  written: string;
}

const prefix = "hf:";
const part = "[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9_-])?";
const pattern = new RegExp(`^hf:(${part}/${part})(?:@([A-Za-z0-9][A-Za-z0-9._/-]*))?$`);

/** Whether a model is named as one of the Hub, in place of a folder. */
export function isHubReference(model: string): boolean {
  return model.startsWith(prefix);
}

/**
 * Parses `hf:OWNER/NAME` or `hf:OWNER/NAME@REVISION`.
 * @throws UsageError if it is neither
 */
export function parseHubReference(written: string): HubReference {
  const [, name, revision = "main"] = pattern.exec(written) ?? [];
  if (name !== undefined && !/\.\.|--|\/\/|\/$/.test(`${name}@${revision}`)) {
    return { name, revision, written };
  }
  throw new UsageError(
    `${written}: expected hf:OWNER/NAME or hf:OWNER/NAME@REVISION, such as hf:HuggingFaceTB/SmolLM2-135M`,
  );
}
