/** Tables and units for a terminal. */

/** Aligns rows of a name and a value in two columns. The first word of a value is a number. */
export function alignRows(rows: readonly (readonly [string, string])[]): string {
  const left = Math.max(...rows.map(([name]) => name.length));
  const right = Math.max(...rows.map(([, value]) => value.split(" ")[0]!.length));
  return rows
    .map(([name, value]) => {
      const [figure = "", ...rest] = value.split(" ");
      return `  ${name.padEnd(left)}  ${[figure.padStart(right), ...rest].join(" ")}`;
    })
    .join("\n");
}

/** Aligns rows of cells: the first column to the left, the others to the right. */
export function alignTable(rows: readonly (readonly string[])[]): string {
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)));
  return rows
    .map((row) =>
      row.map((cell, i) => (i === 0 ? cell.padEnd(widths[i]!) : cell.padStart(widths[i]!))),
    )
    .map((cells) => `  ${cells.join("  ").trimEnd()}`)
    .join("\n");
}

/** Formats bytes with decimal prefixes, the convention for device memory and disks: `1.5 GB`. */
export function formatBytes(bytes: number): string {
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let value = bytes;
  let unit = 0;
  while (value >= 999.5 && unit < units.length - 1) {
    value /= 1000;
    unit++;
  }
  return `${unit === 0 ? value : value.toPrecision(3)} ${units[unit]}`;
}

/** Formats seconds: `1.25 s`, `12.5 ms`. */
export function formatSeconds(seconds: number): string {
  return seconds >= 1 ? `${seconds.toPrecision(3)} s` : `${(1000 * seconds).toPrecision(3)} ms`;
}

/** Formats hours as whole numbers with separators; with two digits below ten. */
export function formatHours(hours: number): string {
  return hours < 10 ? hours.toPrecision(2) : Math.round(hours).toLocaleString("en-US");
}

/** Formats a duration: `4:05`, `2:10:00`, `3d 04:00:00`. */
export function formatDuration(seconds: number): string {
  if (!Number.isFinite(seconds)) return "?";
  const whole = Math.max(0, Math.round(seconds));
  const days = Math.floor(whole / 86_400);
  const hours = Math.floor(whole / 3600) % 24;
  const minutes = String(Math.floor(whole / 60) % 60);
  const rest = String(whole % 60).padStart(2, "0");
  if (days > 0)
    return `${days}d ${String(hours).padStart(2, "0")}:${minutes.padStart(2, "0")}:${rest}`;
  return hours > 0 ? `${hours}:${minutes.padStart(2, "0")}:${rest}` : `${minutes}:${rest}`;
}
