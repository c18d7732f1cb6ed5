// Compares an engine's greedy answers with those of transformers, token by token, in fp32.
//
//   python scripts/compare-generation.py OUT
//   node scripts/compare-generation.mjs OUT [--device cpu]
//
// Each prompt is answered alone, then all at once, once more with the prefix cache warm, then with
// prompts that come and leave while others are answered, and in a cache so small that answers wait
// and are interrupted. The exit code is 1 if any token differs.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { Engine, loadModel, parseDevice } from "../dist/index.js";

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: { device: { type: "string", default: "cpu" } },
});
const [folder] = positionals;
if (folder === undefined) throw new Error("usage: compare-generation.mjs FOLDER [--device cpu]");
const cases = JSON.parse(readFileSync(join(folder, "answers.json"), "utf8"));
const device = parseDevice(options.device);
const model = await loadModel(folder, { device, dtype: "f32" });
let failed = false;

const idsOf = async (engine, { prompt, answer }, more = {}) => {
  const settings = { maxTokens: answer.length, temperature: 0, ignoreEnd: true, n: 1, ...more };
  const { tokens } = await engine.complete(prompt, settings);
  return tokens.map(({ id }) => id);
};

/** Compares answers with the expected ones, as far as they go, and prints a line. */
function compare(name, answers, from) {
  let tokens = 0;
  const differing = [];
  for (const [index, ids] of answers.entries()) {
    tokens += ids.length;
    const at = ids.findIndex((id, place) => id !== cases[index].answer[place]);
    if (at >= 0)
      differing.push(`prompt ${index} (${cases[index].prompt.length} tokens) at token ${at}`);
  }
  const seconds = (performance.now() - from) / 1000;
  const same = `${answers.length - differing.length} of ${answers.length} answers equal`;
  console.log(`${name}: ${same}, ${tokens} tokens in ${seconds.toFixed(1)} s`);
  for (const line of differing) console.log(`  differs: ${line}`);
  failed ||= differing.length > 0;
}

const whole = new Engine(model, null, { maxBatch: cases.length });
let from = performance.now();
const alone = [];
for (const one of cases) alone.push(await idsOf(whole, one));
compare("alone", alone, from);
whole.dispose();

const engine = new Engine(model, null, { maxBatch: cases.length });
for (const name of ["all at once", "all at once, prefix cache warm"]) {
  from = performance.now();
  const { sharedTokens } = engine.state;
  const answers = await Promise.all(cases.map((one) => idsOf(engine, one)));
  compare(
    `${name} (${engine.state.sharedTokens - sharedTokens} prompt tokens shared)`,
    answers,
    from,
  );
}

from = performance.now();
const joining = await Promise.all(
  cases.map(async (one, index) => {
    // Each prompt waits for another one to get on, and every third reader leaves early.
    await idsOf(engine, cases[(index * 7) % cases.length], { maxTokens: 5 + index });
    return await idsOf(engine, one, index % 3 === 0 ? { maxTokens: 20 + index } : {});
  }),
);
compare("with others that come and leave", joining, from);
engine.dispose();

const { layers, kvHeads, headSize } = model.config;
const pageBytes = layers * 2 * 64 * kvHeads * headSize * 4;
const small = new Engine(model, null, {
  maxBatch: 8,
  promptTokens: 48,
  cacheBytes: 20 * pageBytes,
});
from = performance.now();
const squeezed = await Promise.all(cases.map((one) => idsOf(small, one)));
compare(`in a cache of ${small.state.pages} pages, prompts in chunks of 48`, squeezed, from);
small.dispose();
await small.idle();
model.dispose();
process.exitCode = failed ? 1 : 0;
