// Compares our scores with those of lm-evaluation-harness on the same model and rows:
//
//   python3 scripts/eval/harness_scores.py MODEL DATA OUT.json own 200 8 arc_easy piqa mmlu
//   node scripts/eval/harness-scores.mjs MODEL DATA OUT.json auto
//
// The last argument is the number of sequences that go through the model together (default: auto).
// The output is one line for each task and group: whether all scores and standard errors are equal to
// the last digit, and the largest difference of a log-likelihood. The exit code is 1 if a score
// differs, a log-likelihood differs by more than 1e-4 nats and more than 1e-6 of itself, or a token is
// the most likely one on one side only. A perplexity may differ as its log-likelihoods do.
import { readFileSync } from "node:fs";

const dist = process.env.LLAMAFORGE_DIST ?? new URL("../../dist", import.meta.url).href;
const { evaluate, loadModel, parseDevice, Tokenizer } = await import(`${dist}/index.js`);

const [folder, data, path, batch = "auto", device = "cpu"] = process.argv.slice(2);
if (path === undefined) {
  console.error(
    "usage: node scripts/eval/harness-scores.mjs MODEL DATA SCORES.json [BATCH] [DEVICE]",
  );
  process.exit(2);
}
/** Python writes numbers that JSON has not. */
const text = readFileSync(path, "utf8").replace(/: (NaN|-?Infinity)\b/g, ": null");
const theirs = JSON.parse(text);
const { tasks, shots, limit } = theirs.asked;
const model = await loadModel(folder, { dtype: "f32", device: parseDevice(device) });
const ours = await evaluate(model, tasks, {
  tokenizer: await Tokenizer.load(folder),
  data,
  logSamples: true,
  batch: batch === "auto" ? batch : Number(batch),
  ...(limit > 0 && { limit }),
  ...(shots !== null && { fewShot: shots }),
});

const tolerance = 1e-4;
const isPerplexity = (key) => /perplexity|bits_per_byte/.test(key);
let failed = false;
const rows = [
  ["task", "questions", "scores", "largest score difference", "largest log-likelihood difference"],
];
for (const [task, scores] of Object.entries(theirs.results)) {
  const differences = Object.entries(scores)
    .filter(([key]) => key.includes(","))
    .map(([key, value]) => ({ key, ours: ours.results[task]?.[key], theirs: value }))
    .filter(({ ours: a, theirs: b }) => a !== b);
  const apart = differences.map(({ key, ours: a, theirs: b }) => {
    const difference = Math.abs(a - b);
    return { key, difference, wrong: !(isPerplexity(key) ? difference <= tolerance * b : false) };
  });
  const [mine, other] = [ours, theirs].map((result) => result["n-shot"][task]);
  if (mine !== other && other !== undefined) {
    failed = true;
    rows.push([task, "", `not compared: ${mine} examples here, ${other} there`, "", ""]);
    continue;
  }
  const likelihoods = compareSamples(task);
  const wrong = apart.filter((each) => each.wrong);
  failed ||= wrong.length > 0 || likelihoods.apart > 0 || likelihoods.flags > 0;
  rows.push([
    task,
    String(scores.sample_len ?? ""),
    differences.length === 0 ? "equal" : `differ: ${differences.map(({ key }) => key).join(" ")}`,
    apart.length === 0
      ? "0"
      : Math.max(...apart.map(({ difference }) => difference)).toExponential(1),
    likelihoods.count === 0
      ? ""
      : `${likelihoods.difference.toExponential(1)} of ${likelihoods.count}${likelihoods.flags ? `, ${likelihoods.flags} other flags` : ""}`,
  ]);
}
console.log(rows.map((row) => row.join("\t")).join("\n"));
process.exit(failed ? 1 : 0);

/** The log-likelihoods of a task's samples; answers of other kinds are left out. */
function compareSamples(task) {
  const [mine, other] = [ours, theirs].map(({ samples }) =>
    [...(samples[task] ?? [])].sort((a, b) => a.doc_id - b.doc_id),
  );
  const result = { count: 0, difference: 0, apart: 0, flags: 0 };
  if (mine.length !== other.length)
    return { ...result, count: Math.abs(mine.length - other.length), apart: 1 };
  for (const [i, sample] of other.entries()) {
    for (const [j, reply] of sample.filtered_resps.entries()) {
      const [a, b] = [mine[i].filtered_resps[j], reply].map((each) => [each].flat());
      // The harness's logged numbers have become texts where they were NumPy's.
      if (typeof a[0] !== "number") continue;
      result.count++;
      const difference = Math.abs(a[0] - Number(b[0]));
      result.difference = Math.max(result.difference, difference);
      if (!(difference <= Math.max(tolerance, 1e-6 * Math.abs(a[0])))) result.apart++;
      if (a.length > 1 && String(a[1]).toLowerCase() !== String(b[1]).toLowerCase()) result.flags++;
    }
  }
  return result;
}
