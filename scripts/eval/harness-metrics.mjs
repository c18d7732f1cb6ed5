// Compares our metrics of generative tasks with those of lm-evaluation-harness on made-up answers:
//
//   python3 scripts/eval/harness_metrics.py OUT.jsonl 2000
//   node scripts/eval/harness-metrics.mjs OUT.jsonl
//
// The output is the number of equal cases of each kind. The exit code is 1 if one differs. Equal
// means all digits; pass@k may differ by rounding, because it is a product here.
import { createReadStream } from "node:fs";
import { createInterface } from "node:readline";
import { isDeepStrictEqual } from "node:util";

const dist = process.env.LLAMAFORGE_DIST ?? new URL("../../dist", import.meta.url).href;
const load = (name) => import(`${dist}/eval/${name}.js`);
const [{ dropScores, normalizedSpan }, { drop }, { bbhThoughtTasks }, { passAtK }] =
  await Promise.all(["drop-metric", "tasks/drop", "tasks/bbh", "tasks/humaneval"].map(load));
const [bbh] = bbhThoughtTasks;

const ours = {
  normal: normalizedSpan,
  spans: ({ predicted, gold }) => dropScores(predicted, gold),
  row: ({ row, answer }) => drop.score(row, [answer], null),
  thought: ({ text, target }) => {
    const row = { target };
    const found = bbh.filters[0].apply(row, text);
    return { found, ...bbh.score(row, [found], null) };
  },
  pass: ({ n, passed, k }) => passAtK(n, passed, k),
};

const path = process.argv[2];
if (path === undefined) {
  console.error("usage: node scripts/eval/harness-metrics.mjs CASES.jsonl");
  process.exit(2);
}
const counts = {};
let differing = 0;
for await (const line of createInterface({ input: createReadStream(path), crlfDelay: Infinity })) {
  const { kind, input, output } = JSON.parse(line);
  const mine = ours[kind](input);
  const equal = kind === "pass" ? Math.abs(mine - output) < 1e-12 : isDeepStrictEqual(mine, output);
  counts[kind] ??= { cases: 0, equal: 0, values: new Set() };
  counts[kind].cases++;
  counts[kind].values.add(JSON.stringify(output));
  if (equal) counts[kind].equal++;
  else if (differing++ < 10)
    console.error(JSON.stringify({ kind, input, theirs: output, ours: mine }));
}
for (const [kind, { cases, equal, values }] of Object.entries(counts)) {
  console.log(JSON.stringify({ kind, cases, equal, differentResults: values.size }));
}
process.exit(differing > 0 ? 1 : 0);
