const shownItems = 20;
const shownLength = 500;

/**
 * Joins findings into lines of a message: the first 20, and the number of further ones. A damaged
 * file may give 100,000 findings, or one with a value of a megabyte, and the first ones show the
 * problem.
 */
export function boundedList(items: readonly string[], separator = "\n"): string {
  const shown = items
    .slice(0, shownItems)
    .map((item) => (item.length > shownLength ? `${item.slice(0, shownLength)}…` : item));
  const more = items.length - shown.length;
  if (more > 0) shown.push(`  ... and ${more.toLocaleString("en-US")} more`);
  return shown.join(separator);
}
