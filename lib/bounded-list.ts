/** Findings beyond this many tell nothing new, and a million of them fill a terminal. */
const maxListed = 20;

/** The first of many lines, and how many more there are. */
export function boundedList(lines: readonly string[], most = maxListed): string {
  const shown = lines.slice(0, most);
  const left = lines.length - shown.length;
  if (left > 0) shown.push(`  ... and ${left} more`);
  return shown.join("\n");
}
