// Compares the requests of our tasks with those that lm-evaluation-harness makes of the same rows:
//
//   python3 scripts/eval/harness_requests.py DATA OUT.jsonl 5 0 piqa boolq
//   node scripts/eval/harness-requests.mjs DATA OUT.jsonl
//
// Both our own task and the harness's YAML file must give the same texts, character by character.
// The output is one line per task. The exit code is 1 if a request differs.
import { createReadStream } from "node:fs";
import { createInterface } from "node:readline";

const dist = process.env.LLAMAFORGE_DIST ?? new URL("../../dist", import.meta.url).href;
const load = (name) => import(`${dist}/eval/${name}.js`);
const [{ publishedTasks }, { yamlTask }, { TaskRows }, { Examples }, prompt] = await Promise.all(
  ["registry", "yaml-task", "rows", "few-shot", "prompt"].map(load),
);

/** The requests of a task as the Python script writes them: [row, argument, ...]. */
async function requestsOf(task, data, shots, count) {
  const rows = new TaskRows({ data });
  const questions = await rows.questionsOf(task);
  const examples = await Examples.open(task, rows, { count: shots });
  return questions.slice(0, count).flatMap((row, index) => {
    const shown = examples.next(row);
    if (task.kind === "text") return [[index, prompt.wholeText(task, row)]];
    if (task.kind === "generation") {
      return prompt
        .answerRequests(task, row, shown, 0)
        .map(({ prompt: text, until, maxTokens }) => [index, text, until, maxTokens]);
    }
    return prompt
      .likelihoodRequests(task, row, shown)
      .map(({ prompt: text, continuation }) => [index, text, continuation]);
  });
}

/** A request of the harness in the same form. Its options of generation become ours. */
function normal([row, ...values]) {
  const options = values.find((value) => typeof value === "object");
  if (options === undefined) return [row, ...values];
  return [row, values[0], options.until, options.max_gen_toks ?? 256];
}

/** Data of a YAML task in the layout of the local rows: MMLU's subjects share one file. */
function placed(taskData, folder, own) {
  const [top] = folder.split("/");
  return { ...taskData, folder: top, ...(own?.keep && { keep: own.keep }) };
}

const [data, path] = process.argv.slice(2);
if (path === undefined) {
  console.error("usage: node scripts/eval/harness-requests.mjs DATA REQUESTS.jsonl");
  process.exit(2);
}
let differing = 0;
for await (const line of createInterface({ input: createReadStream(path), crlfDelay: Infinity })) {
  const { task: name, yaml, folder, shots, requests } = JSON.parse(line);
  const theirs = requests.map(normal);
  const count = new Set(theirs.map(([row]) => row)).size;
  const own = publishedTasks.get(name);
  const result = { task: name, shots, rows: count, requests: theirs.length };
  const fromYaml = await yamlTask(yaml).catch((error) => {
    result.yaml = error.message;
  });
  if (fromYaml) fromYaml.data = placed(fromYaml.data, folder, own?.data);
  for (const [kind, task] of [
    ["own", own],
    ["yaml", fromYaml],
  ]) {
    if (!task) continue;
    const ours = await requestsOf(task, data, shots, count);
    const at = theirs.findIndex((r, i) => JSON.stringify(r) !== JSON.stringify(ours[i]));
    const equal = at < 0 && ours.length === theirs.length;
    result[kind] = equal ? "identical" : "DIFFERENT";
    if (!equal) {
      differing++;
      console.error(`${name} (${kind}), request ${at}:`, { theirs: theirs[at], ours: ours[at] });
    }
  }
  console.log(JSON.stringify(result));
}
process.exit(differing > 0 ? 1 : 0);
