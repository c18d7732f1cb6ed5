/** Several runs beside each other: one page with a line for each run. */
import { basename, dirname, resolve } from "node:path";
import { UsageError } from "../core/errors.js";
import { makeFolder } from "../files/make-folder.js";
import { replaceFile } from "../files/replace-file.js";
import { formatDuration } from "../plan/format.js";
import { chartData, type RunRecord, readRun, summarise } from "./events.js";
import { embedJson, escapeHtml } from "./html.js";
import { pageAssets } from "./page-assets.js";

/** More lines cannot be told apart. */
const mostRuns = 8;

/** Points of a run's lines. All runs share one axis, so that each adds its points to it. */
const mostPoints = 1500;

/**
 * Writes the comparison of several runs as one HTML file that opens anywhere without a network.
 * @param folders of two to eight runs
 * @returns the file's path
 * @throws UsageError if a folder is not a run's, or the file cannot be written
 */
export async function writeComparison(folders: readonly string[], file: string): Promise<string> {
  if (folders.length < 2 || folders.length > mostRuns)
    throw new UsageError(`expected two to ${mostRuns} runs to compare, got ${folders.length}`);
  const runs = await Promise.all(folders.map(readRun));
  const html = await renderComparison(runs, namesOf(folders));
  try {
    await makeFolder(dirname(resolve(file)));
    await replaceFile(file, html);
  } catch (cause) {
    throw new UsageError(`the comparison ${file} cannot be written: ${(cause as Error).message}`, {
      cause,
    });
  }
  return file;
}

/** Names that tell the folders apart: their last parts, or the whole paths where those are equal. */
function namesOf(folders: readonly string[]): string[] {
  const short = folders.map((folder) => basename(resolve(folder)));
  return new Set(short).size === short.length ? short : [...folders];
}

/** Renders the comparison as HTML text. */
export async function renderComparison(
  runs: readonly RunRecord[],
  names: readonly string[],
): Promise<string> {
  const { chartScript, chartStyle, chartLicence, pageScript, pageStyle } =
    await pageAssets("compare.js");
  const data = runs.map((run, i) => {
    const { step, tokens, loss, validation, lr, tokensPerSecond } = chartData(
      run.steps,
      mostPoints,
    );
    return { name: names[i], step, tokens, loss, validation, lr, tokensPerSecond };
  });
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,">
<title>${escapeHtml(names.join(", "))} · LlamaForge</title>
<style>${chartStyle}</style>
<style>${pageStyle}</style>
</head>
<body>
<main>
<header><h1>${runs.length} runs</h1></header>
${summaryTable(runs, names)}
<nav id="controls" aria-label="Chart settings"><fieldset><legend>x axis</legend>
<label><input type="radio" name="x" value="step" checked><span>steps</span></label>
<label><input type="radio" name="x" value="tokens"><span>tokens</span></label>
</fieldset><span class="hint">drag to zoom, double-click to reset</span></nav>
<section id="charts" aria-label="Charts"></section>
<noscript>The charts need JavaScript; it is all inside this file.</noscript>
${differences(runs, names)}
<footer>Made by LlamaForge. Charts by uPlot, © Leon Sorokin, MIT licence.</footer>
</main>
<script type="application/json" id="runs-data">${embedJson(data)}</script>
<script>/*
uPlot, https://github.com/leeoniya/uPlot
${chartLicence.trim()}
*/
${chartScript}</script>
<script>${pageScript}</script>
</body>
</html>
`;
}

const table = (title: string, head: readonly string[], rows: readonly (readonly string[])[]) => {
  const cells = (row: readonly string[], tag: string) =>
    `<tr>${row.map((cell) => `<${tag}>${escapeHtml(cell)}</${tag}>`).join("")}</tr>`;
  return `<section class="panel"><h2>${title}</h2><div class="scroll"><table class="figures">
<thead>${cells(head, "th")}</thead><tbody>${rows.map((row) => cells(row, "td")).join("\n")}</tbody>
</table></div></section>`;
};

function summaryTable(runs: readonly RunRecord[], names: readonly string[]): string {
  const whole = (value: number) => Math.round(value).toLocaleString("en-US");
  const rows = runs.map((run, i) => {
    const { step, tokens, finalLoss, validation, trainingSeconds, tokensPerSecond } =
      summarise(run);
    return [
      names[i] as string,
      whole(step),
      whole(tokens),
      finalLoss.toFixed(4),
      validation ? validation.loss.toFixed(4) : "–",
      validation?.bitsPerByte != null ? validation.bitsPerByte.toFixed(3) : "–",
      whole(tokensPerSecond),
      formatDuration(trainingSeconds),
      whole(run.info.parameters),
    ];
  });
  const head = ["run", "step", "tokens", "loss", "validation", "bits per byte"];
  return table("Results", [...head, "tokens/s", "time", "parameters"], rows);
}

/** The options that differ between the runs. */
function differences(runs: readonly RunRecord[], names: readonly string[]): string {
  const flat = runs.map(({ info }) => flatten(info.config));
  const paths = [...new Set(flat.flatMap((options) => [...options.keys()]))];
  const rows = paths
    .map((path) => [path, ...flat.map((options) => options.get(path) ?? "–")])
    .filter(([, first, ...others]) => others.some((value) => value !== first));
  if (rows.length === 0) return "";
  return table("What differs", ["option", ...names], rows);
}

function flatten(value: object, path = ""): Map<string, string> {
  const found = new Map<string, string>();
  for (const [key, inner] of Object.entries(value)) {
    const name = path === "" ? key : `${path}.${key}`;
    if (typeof inner === "object" && inner !== null && !Array.isArray(inner)) {
      for (const [below, text] of flatten(inner, name)) found.set(below, text);
    } else if (inner !== undefined) found.set(name, JSON.stringify(inner));
  }
  return found;
}
