// Compares our answers to generative tasks with those of lm-evaluation-harness on the same model:
//
//   python3 scripts/eval/random_llama.py MODEL assets/quickstart 2048
//   python3 scripts/eval/harness_answers.py MODEL DATA OUT.jsonl own 20 1 humaneval bbh_fewshot_snarks
//   node scripts/eval/harness-answers.mjs MODEL DATA OUT.jsonl 16
//
// The last argument is the number of answers that are written together (default: auto). Prompts,
// generated texts, filtered answers and metrics must be equal; HumanEval's programs are not run. The
// output is one line for each task. The exit code is 1 if something differs.
import { createReadStream } from "node:fs";
import { createInterface } from "node:readline";

const dist = process.env.LLAMAFORGE_DIST ?? new URL("../../dist", import.meta.url).href;
const load = (name) => import(`${dist}/${name}.js`);
const [{ Tokenizer, loadModel }, { publishedTasks }, { TaskRows }, { makeQuestions }, { Scorer }] =
  await Promise.all(
    ["index", "eval/registry", "eval/rows", "eval/questions", "eval/scorer"].map(load),
  );

const [folder, data, path, batch = "auto"] = process.argv.slice(2);
if (path === undefined) {
  console.error("usage: node scripts/eval/harness-answers.mjs MODEL DATA ANSWERS.jsonl [BATCH]");
  process.exit(2);
}
const model = await loadModel(folder, { dtype: "f32" });
const tokenizer = await Tokenizer.load(folder);
const scorer = new Scorer(model, tokenizer, { batch: batch === "auto" ? batch : Number(batch) });

const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

/** Our row in the form of the Python script. */
async function ourRow(task, { row, answers }, { text }) {
  const filters = task.filters ?? [{ name: "none", apply: (_, answer) => answer }];
  const filtered = {};
  const values = {};
  for (const { name, apply } of filters) {
    filtered[name] = apply(row, text);
    if (!task.runsCode) values[name] = await task.score(row, [filtered[name]], null);
  }
  return { prompt: answers[0].prompt, text, filtered, values };
}

let differing = 0;
for await (const line of createInterface({ input: createReadStream(path), crlfDelay: Infinity })) {
  const { task: name, shots, rows: theirs } = JSON.parse(line);
  const task = publishedTasks.get(name);
  const settings = { limit: theirs.length, fewShot: shots, seed: 1234 };
  const { questions } = await makeQuestions(task, new TaskRows({ data }), settings);
  const answers = await scorer.answers(questions.flatMap((question) => question.answers));
  const result = { task: name, rows: theirs.length, prompt: 0, text: 0, filtered: 0, values: 0 };
  const lengths = new Set();
  const values = new Set();
  for (const [index, question] of questions.entries()) {
    const ours = await ourRow(task, question, answers[index]);
    lengths.add(ours.text.length);
    values.add(JSON.stringify(ours.values));
    for (const part of ["prompt", "text", "filtered", "values"]) {
      if (same(ours[part], theirs[index][part])) result[part]++;
      else {
        differing++;
        console.error(`${name}, row ${index}, ${part}:`);
        console.error({ theirs: theirs[index][part], ours: ours[part] });
      }
    }
  }
  // Equal answers prove little if all of them are the same.
  const different = new Set(theirs.map(({ text }) => text)).size;
  console.log(JSON.stringify({ ...result, different, lengths: lengths.size, scores: values.size }));
}
process.exit(differing > 0 ? 1 : 0);
