// The command line of bench/data/run.mjs, the values derived from it, and the file for its figures.
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { availableParallelism, cpus, loadavg, tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

export const root = fileURLToPath(new URL("../..", import.meta.url));
export const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    mb: { type: "string", default: "32" },
    kills: { type: "string", default: "20" },
    mean: { type: "string" },
    beside: { type: "boolean", default: false },
    "shard-tokens": { type: "string", default: String(2 ** 24) },
    scale: { type: "string", default: "1" },
    workers: { type: "string", default: String(availableParallelism()) },
    kind: { type: "string", default: "auto" },
    config: { type: "string" },
    results: { type: "string" },
    tokenizer: { type: "string", default: join(root, "assets/quickstart") },
    work: { type: "string", default: tmpdir() },
    dist: { type: "string", default: join(root, "dist") },
  },
});
export const [mode, corpus] = positionals;
/** The folder that a run writes to; removed at its end. */
export const work = join(values.work, `llamaforge-bench-data-${process.pid}`);
/** A module of the built library that prepares data. */
export const library = (name) => resolve(values.dist, name);

/** The recipe of --config, or the folder as the only input. */
export async function recipe() {
  if (values.config === undefined) return { inputs: [{ path: corpus, kind: values.kind }] };
  const { loadPrepareConfig } = await import(library("prepare/description.js"));
  const { inputs, options } = await loadPrepareConfig(values.config, corpus);
  return { ...options, inputs };
}

/** Options of a preparation, without the inputs. */
export const base = (out, options) => ({
  maxRunShare: 1,
  ...options,
  out: join(work, out),
  tokenizer: values.tokenizer,
  workers: Number(values.workers),
});
export const round = (number, digits = 2) => Number(number.toFixed(digits));

/** Writes figures under their mode's name into the file of --results. */
export function record(figures) {
  if (values.results === undefined) return;
  const all = existsSync(values.results) ? JSON.parse(readFileSync(values.results, "utf8")) : {};
  const tokenizers = join(root, "node_modules/tokenizers/package.json");
  all[mode] = {
    date: new Date().toISOString().slice(0, 10),
    cpu: `${cpus()[0].model}, ${availableParallelism()} cores`,
    loadAverage: loadavg().map((load) => round(load, 1)),
    node: process.version,
    tokenizers: JSON.parse(readFileSync(tokenizers, "utf8")).version,
    ...figures,
  };
  writeFileSync(values.results, `${JSON.stringify(all, null, 2)}\n`);
}
