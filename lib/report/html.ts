import { dirname, join } from "node:path";
import { expectUnmoved } from "../checkpoint/moved.js";
import { describeOption, type RunConfig } from "../config/index.js";
import { checkPath } from "../core/check-values.js";
import { UsageError } from "../core/errors.js";
import { isShare } from "../eval/published.js";
import type { FolderIdentity } from "../files/folder-identity.js";
import { makeFolder } from "../files/make-folder.js";
import { replaceFile } from "../files/replace-file.js";
import { modelFlopsUtilisation, peakOf, trainingFlops } from "../plan/flops.js";
import { formatDuration } from "../plan/format.js";
import { waitParts } from "../train/device-waits.js";
import { runFiles, type StepMetrics } from "../train/metrics.js";
import {
  chartData,
  type RunRecord,
  type RunSummary,
  readRun,
  samplesByStep,
  summarise,
} from "./events.js";
import { pageAssets } from "./page-assets.js";

function pathOf(folder: string): string {
  checkPath("writeReport", "folder", folder);
  return folder;
}

/**
 * Writes a run's `report.html`, one file that opens anywhere without a network.
 * @param file path of the report. Default: inside the run's folder
 * @param identity identity of the run's folder, for a run that still holds it
 * @returns the file's path
 * @throws UsageError if the folder is not a run's, or the file cannot be written
 * @throws CheckpointError if another folder took the place of the one that `identity` names
 */
export async function writeReport(
  folder: string,
  file = join(pathOf(folder), runFiles.report),
  identity: FolderIdentity | null = null,
): Promise<string> {
  checkPath("writeReport", "file", file);
  pathOf(folder);
  const html = await renderReport(await readRun(identity?.root ?? folder));
  await expectUnmoved(identity);
  try {
    await makeFolder(dirname(file));
    await replaceFile(file, html);
  } catch (cause) {
    throw new UsageError(`the report ${file} cannot be written: ${(cause as Error).message}`, {
      cause,
    });
  }
  return file;
}

/**
 * Renders the report as HTML text.
 * @param liveScript code of a page that a server keeps up to date
 */
export async function renderReport(run: RunRecord, liveScript = ""): Promise<string> {
  const { chartScript, chartStyle, chartLicence, pageScript, pageStyle } =
    await pageAssets("report.js");
  const { config } = run.info;
  const data = { ...chartData(run.steps), clip: config.optimizer.clip };
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:${liveScript && "; connect-src 'self'"}">
<link rel="icon" href="data:,">
<title>${escapeHtml(config.name)} · LlamaForge</title>
<style>${chartStyle}</style>
<style>${pageStyle}</style>
</head>
<body>
<main>
${header(run)}
${controls}
<section id="charts" aria-label="Charts"></section>
<noscript>The charts need JavaScript; it is all inside this file.</noscript>
<div id="tables" data-steps="${run.steps.length}">${tables(run.steps)}</div>
${configSection(config)}
<footer>Made by LlamaForge ${escapeHtml(run.info.versions.llamaforge ?? "")}.
Charts by uPlot, © Leon Sorokin, MIT licence.</footer>
</main>
<script type="application/json" id="run-data">${embedJson(data)}</script>
<script>/*
uPlot, https://github.com/leeoniya/uPlot
${chartLicence.trim()}
*/
${chartScript}</script>
<script>${pageScript}</script>
${liveScript && `<script>${liveScript}</script>\n`}</body>
</html>
`;
}

const controls = `<nav id="controls" aria-label="Chart settings">
<fieldset><legend>x axis</legend>
<label><input type="radio" name="x" value="step" checked><span>steps</span></label>
<label><input type="radio" name="x" value="tokens"><span>tokens</span></label>
</fieldset>
<label class="switch"><input type="checkbox" id="log-loss"><span>log loss</span></label>
<label class="range"><span>smoothing</span>
<input type="range" id="smoothing" min="0" max="100" value="60"></label>
<span class="hint">drag to zoom, double-click to reset</span>
</nav>`;

/** The page's lists: validation, scores, samples and skipped steps. */
export function tables(steps: readonly StepMetrics[]): string {
  return [
    validationSection(steps),
    scoreSection(steps),
    sampleSection(steps),
    fp8Section(steps),
    skippedSection(steps),
  ].join("\n");
}

/** The page's head: the name of the run, facts and cards. */
export function header(run: RunRecord): string {
  const { info } = run;
  const { config } = info;
  const summary = summarise(run);
  const { validation } = summary;
  const whole = (n: number) => Math.round(n).toLocaleString("en-US");
  const unit = config.dpo ? "mean over pairs" : "nats per token";
  const preferred = validation?.figures?.["rewards/accuracies"];
  const cards: [string, string, string][] = [
    ["loss", fixed(summary.finalLoss, 4), `${unit}, mean of the last steps`],
    ["validation", fixed(validation?.loss, 4), `${unit}, held-out documents`],
    config.dpo
      ? ["preferred", fixed(preferred && 100 * preferred, 1), "% of held-out pairs"]
      : ["bits per byte", fixed(validation?.bitsPerByte, 3), "held-out documents"],
    ["tokens", compact(summary.tokens), `step ${whole(summary.step)} of ${whole(config.steps)}`],
    ["time", formatDuration(summary.trainingSeconds), waitText(summary)],
    ["speed", `${whole(summary.tokensPerSecond)}`, speedText(run, summary.tokensPerSecond)],
  ];
  if (summary.waits) cards.push(waitCard(summary.waits));
  if (summary.skipped > 0) cards.push(["skipped steps", whole(summary.skipped), "by the guard"]);
  const facts = [
    `${compact(info.parameters)} parameters`,
    `${config.model.layers} layers of ${config.model.hiddenSize}`,
    config.precision,
    info.worldSize > 1 ? `${info.worldSize} x ${info.deviceName}` : info.deviceName,
    `started ${info.started.slice(0, 16).replace("T", " ")} UTC`,
  ];
  const card = ([label, value, note]: [string, string, string]) =>
    `<div class="card"><dt>${escapeHtml(label)}</dt><dd>${escapeHtml(value)}</dd>` +
    `<small>${escapeHtml(note)}</small></div>`;
  return `<header>
<h1>${escapeHtml(config.name)}</h1>
<p>${facts.map(escapeHtml).join(" · ")}</p>
<dl class="cards">${cards.map(card).join("\n")}</dl>
</header>`;
}

/** Records of older versions only contain the host's wait. */
function waitText({ dataWait, waits }: RunSummary): string {
  return dataWait < 0.005 || waits
    ? "of training steps"
    : `of training steps, ${(100 * dataWait).toFixed(1)}% waiting for data`;
}

function waitCard({ ms, ofMs }: NonNullable<RunSummary["waits"]>): [string, string, string] {
  const [waited = "", ...parts] = waitParts(ms, ofMs);
  return ["device waited", waited, parts.join(", ") || "of the time"];
}

/**
 * Utilisation is only given against a known peak, which is bf16's, and names the convention by
 * which it counts.
 */
function speedText({ info }: RunRecord, tokensPerSecond: number): string {
  const { precision } = info.config;
  const flops = trainingFlops(info.config).causal;
  const achieved = (tokensPerSecond * flops) / 1e12;
  const rate =
    achieved < 1 ? `${fixed(achieved * 1000, 0)} GFLOP/s` : `${fixed(achieved, 1)} TFLOP/s`;
  const peak = precision === "bf16" ? peakOf(info.deviceName) : undefined;
  if (peak === undefined) return `tokens/s, ${rate} counted causally`;
  const share = 100 * modelFlopsUtilisation(tokensPerSecond / info.worldSize, flops, peak.tflops);
  const all = info.worldSize > 1 ? `${info.worldSize} times ` : "";
  return `tokens/s, ${rate}, ${share.toFixed(1)}% of ${all}${peak.name}'s ${peak.tflops}`;
}

function validationSection(steps: readonly StepMetrics[]): string {
  const measured = steps.flatMap(({ validation }) => validation ?? []);
  const names = Object.keys(measured.find(({ figures }) => figures)?.figures ?? {});
  const rows = steps.flatMap(({ step, tokens, validation }) =>
    validation === undefined
      ? []
      : [
          [step.toLocaleString("en-US"), compact(tokens), fixed(validation.loss, 4)].concat(
            names.length > 0
              ? names.map((name) => fixed(validation.figures?.[name], 3))
              : fixed(validation.bitsPerByte, 3),
          ),
        ],
  );
  if (rows.length === 0) return "";
  const cells = rows.map((row) => `<tr>${row.map((cell) => `<td>${cell}</td>`).join("")}</tr>`);
  const titles =
    names.length > 0
      ? ["loss", ...names.map(escapeHtml)]
      : ["loss, nats per token", "bits per byte"];
  const heads = titles.map((title) => `<th>${title}</th>`).join("");
  return `<details class="panel"><summary>Validation <small>${rows.length} evaluations</small></summary>
<div class="scroll"><table class="figures">
<thead><tr><th>step</th><th>tokens</th>${heads}</tr></thead>
<tbody>${cells.join("\n")}</tbody></table></div></details>`;
}

/** Scores of all tasks, newest first. */
function scoreSection(steps: readonly StepMetrics[]): string {
  const scored = steps.filter(({ scores }) => scores !== undefined && scores.length > 0).reverse();
  if (scored.length === 0) return "";
  const rows = scored.flatMap(({ step, scores = [] }) =>
    scores.map((score, i) => {
      const { task, metric, error } = score;
      const scale = isShare(score) ? 100 : 1;
      const cells = [
        i === 0 ? step.toLocaleString("en-US") : "",
        escapeHtml(task),
        escapeHtml(metric),
        fixed(scale * score.value, scale === 1 ? 4 : 2),
        error === null ? "–" : fixed(scale * error, scale === 1 ? 4 : 2),
      ];
      return `<tr>${cells.map((cell) => `<td>${cell}</td>`).join("")}</tr>`;
    }),
  );
  return `<details class="panel"><summary>Scores on tasks <small>${scored.length} evaluations</small></summary>
<div class="scroll"><table class="figures">
<thead><tr><th>step</th><th>task</th><th>metric</th><th>score, percent</th><th>standard error</th></tr></thead>
<tbody>${rows.slice(0, 5000).join("\n")}</tbody></table></div></details>`;
}

function sampleSection(steps: readonly StepMetrics[]): string {
  const groups = samplesByStep(steps);
  if (groups.length === 0) return "";
  const blocks = groups.map(({ step, samples }, i) => {
    const texts = samples.map(
      ({ prompt, text }) =>
        `<blockquote><b>${escapeHtml(prompt)}</b>${escapeHtml(text)}</blockquote>`,
    );
    const title = `step ${step.toLocaleString("en-US")}`;
    return `<details${i === 0 ? " open" : ""}><summary>${title}</summary>${texts.join("\n")}</details>`;
  });
  return `<section class="panel samples"><h2>Samples</h2>\n${blocks.join("\n")}\n</section>`;
}

/** Figures of the last watched step's tensors in fp8: a row for each tensor, over all layers. */
function fp8Section(steps: readonly StepMetrics[]): string {
  const last = steps.findLast(({ fp8 }) => fp8 !== undefined);
  if (!last?.fp8) return "";
  const { largest, zeros, saturated, bf16Layers = [] } = last.fp8;
  const worst = (of: readonly (number | null)[] = []): [number, number] | null => {
    const layer = of.reduce<number>((best, x, at) => ((x ?? -1) > (of[best] ?? -1) ? at : best), 0);
    const value = of[layer] ?? null;
    return value === null ? null : [value, layer];
  };
  const cell = (found: [number, number] | null, format: (x: number) => string) =>
    `<td>${found ? `${format(found[0])} <small>layer ${found[1]}</small>` : "–"}</td>`;
  const percent = (x: number) => `${(100 * x).toFixed(3)}%`;
  const rows = Object.keys(largest).map(
    (place) =>
      `<tr><td>${escapeHtml(place)}</td>${cell(worst(largest[place]), (x) => x.toPrecision(4))}` +
      `${cell(worst(zeros[place]), percent)}${cell(worst(saturated[place]), percent)}</tr>`,
  );
  const fallen = bf16Layers.length > 0 ? `, layers in bf16: ${bf16Layers.join(", ")}` : "";
  return `<details class="panel"><summary>Tensors in fp8 <small>step ${last.step}${fallen}</small></summary>
<div class="scroll"><table class="figures">
<thead><tr><th>tensor</th><th>largest number</th><th>zeros</th><th>saturated</th></tr></thead>
<tbody>${rows.join("\n")}</tbody></table></div></details>`;
}

function skippedSection(steps: readonly StepMetrics[]): string {
  const rows = steps
    .filter(({ skipped }) => skipped !== undefined)
    .slice(0, 1000)
    .map(({ step, skipped }) => `<tr><td>${step}</td><td>${escapeHtml(skipped!)}</td></tr>`);
  if (rows.length === 0) return "";
  return `<details class="panel"><summary>Skipped steps <small>${rows.length}</small></summary>
<div class="scroll"><table><tbody>${rows.join("\n")}</tbody></table></div></details>`;
}

function configSection(config: RunConfig): string {
  const general: [string, unknown][] = [];
  const sections: string[] = [];
  for (const [name, value] of Object.entries(config)) {
    if (typeof value !== "object" || value === null) general.push([name, value]);
    else if (Object.keys(value).length > 0) {
      sections.push(configTable(name, Object.entries(value), [name]));
    }
  }
  return `<section class="panel"><h2>Configuration</h2>
<div class="config">${configTable("run", general, [])}\n${sections.join("\n")}</div></section>`;
}

function configTable(title: string, entries: [string, unknown][], path: string[]): string {
  const rows = entries.flatMap(([key, value]): string[] => {
    if (typeof value === "object" && value !== null && !Array.isArray(value)) {
      return Object.entries(value).map(([inner, leaf]) =>
        row(`${key} ${inner}`, leaf, [...path, key]),
      );
    }
    return [row(key, value, [...path, key])];
  });
  return `<table><caption>${escapeHtml(title)}</caption><tbody>${rows.join("")}</tbody></table>`;

  function row(name: string, value: unknown, option: string[]): string {
    const shown = Array.isArray(value)
      ? value.map((entry) => JSON.stringify(entry))
      : [String(value)];
    const help = describeOption(option) ?? "";
    const lines = shown.map(escapeHtml).join("<br>");
    return `<tr title="${escapeHtml(help)}"><th>${escapeHtml(name)}</th><td>${lines}</td></tr>`;
  }
}

function fixed(value: number | null | undefined, digits: number): string {
  return value === null || value === undefined || !Number.isFinite(value)
    ? "–"
    : value.toFixed(digits);
}

/** Formats a number compactly: `1.95M`, `3.00T`. */
function compact(n: number): string {
  const units = ["", "k", "M", "B", "T"];
  let value = n;
  let unit = 0;
  while (value >= 999.5 && unit < units.length - 1) {
    value /= 1000;
    unit++;
  }
  return unit === 0 ? String(value) : `${value.toPrecision(3)}${units[unit]}`;
}

const entities: Record<string, string> = {
  "&": "&amp;",
  "<": "&lt;",
  ">": "&gt;",
  '"': "&quot;",
  "'": "&#39;",
};

/**
 * Escapes text for HTML content or a quoted attribute. NUL would be an error in HTML and is shown
 * as its symbol.
 */
export function escapeHtml(text: string): string {
  return text.replace(/[&<>"']/g, (sign) => entities[sign]!).replaceAll("\0", "\u{2400}");
}

/**
 * JSON that no text inside can break out of: without `<` there is neither `</script` nor `<!--`.
 */
export function embedJson(value: unknown): string {
  return JSON.stringify(value).replaceAll("<", "\\u003c");
}
