import { DataError } from "../core/errors.js";
import { optionName } from "../core/option-names.js";

/** Reasons why a file or folder of an input is not read. */
export const passedOverReasons = {
  // Entries that cannot be read: an error, unless they are to be skipped.
  dangling: "links to nothing",
  loop: "links in a circle",
  denied: "without the right to read them",
  special: "no regular files (FIFO, socket, device)",
  failed: "that the system cannot read",
  // Entries that are passed over by design.
  type: "of another type",
  about: "about the data (README, licence)",
  settings: ".json beside .jsonl or parquet",
  split: "of another split",
  empty: "empty",
  copy: "further names of a file that is read (links)",
  linkedFolder: "links to folders",
  excluded: "folders that are not entered",
} as const;

export type PassedOverReason = keyof typeof passedOverReasons;

const unreadable = ["dangling", "loop", "denied", "special", "failed"];

/** A file or folder of an input that is not read. */
export interface PassedOver {
  path: string;
  reason: PassedOverReason;
  /** The entry is a folder that could not be listed, so its content is unknown. */
  unlisted?: true;
}

export function isUnreadable({ reason }: PassedOver): boolean {
  return unreadable.includes(reason);
}

/** The reason that corresponds to an error of the file system. */
export function reasonOf(error: unknown): PassedOverReason {
  const { code } = error as NodeJS.ErrnoException;
  if (code === "ENOENT") return "dangling";
  if (code === "ELOOP") return "loop";
  return code === "EACCES" || code === "EPERM" ? "denied" : "failed";
}

/** Names given in a message; all others are only counted. */
const named = 5;

/** One line for each reason: the number of entries, and the first of their names. */
export function describePassedOver(passed: readonly PassedOver[]): string[] {
  const reasons = [...new Set(passed.map(({ reason }) => reason))];
  return reasons.map((reason) => {
    const list = passed.filter((entry) => entry.reason === reason);
    const names = list.slice(0, named).map(({ path }) => JSON.stringify(path).slice(1, -1));
    const rest = list.length > named ? `, … (${list.length - named} more)` : "";
    return `${list.length} ${passedOverReasons[reason]}: ${names.join(", ")}${rest}`;
  });
}

/** Number of entries for each reason. */
export function countPassedOver(passed: readonly PassedOver[]): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const { reason } of passed) counts[reason] = (counts[reason] ?? 0) + 1;
  return counts;
}

/** @throws DataError that names an input's unreadable entries, unless they are to be skipped */
export function refuseUnreadable(
  input: string,
  passed: readonly PassedOver[],
  skipUnreadable: boolean,
): void {
  const refused = skipUnreadable ? [] : passed.filter(isUnreadable);
  if (refused.length === 0) return;
  throw new DataError(
    `[prepare] ${input}: cannot read ${describePassedOver(refused).join("; ")}. ` +
      `Put it right, name other inputs, or leave such files out: ${optionName("skipUnreadable")}`,
  );
}
