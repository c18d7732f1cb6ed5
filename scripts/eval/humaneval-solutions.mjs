// Runs HumanEval's own solutions, and functions that return nothing, in the sandbox:
//
//   node scripts/eval/humaneval-solutions.mjs DATA
//
// All solutions must pass, and no other function may. The exit code is 1 otherwise.
const dist = process.env.LLAMAFORGE_DIST ?? new URL("../../dist", import.meta.url).href;
const load = (name) => import(`${dist}/eval/${name}.js`);
const [{ humaneval }, { TaskRows }, { Sandbox }] = await Promise.all(
  ["tasks/humaneval", "rows", "sandbox"].map(load),
);

const [data] = process.argv.slice(2);
if (data === undefined) {
  console.error("usage: node scripts/eval/humaneval-solutions.mjs DATA");
  process.exit(2);
}
const rows = await new TaskRows({ data }).questionsOf(humaneval);
const sandbox = await Sandbox.open({ allowCodeExecution: true, timeoutMs: 10_000 });
const start = performance.now();
const passes = async (solutionOf) => {
  const programs = rows.map((row, i) => {
    const completed = humaneval.filters[0].apply(row, solutionOf(i));
    return `${completed}\n${humaneval.target(row)}`;
  });
  const results = await sandbox.runAll(programs);
  for (const [i, { passed, end, detail }] of results.entries()) {
    if (!passed && solutionOf(i) === rows[i].canonical_solution) {
      console.error(`${rows[i].task_id}: ${end} ${detail}`);
    }
  }
  return results.filter(({ passed }) => passed).length;
};
const own = await passes((i) => rows[i].canonical_solution);
const empty = await passes(() => "    return None\n");
const seconds = ((performance.now() - start) / 1000).toFixed(1);
console.log(
  JSON.stringify({ method: sandbox.method, rows: rows.length, solutions: own, empty, seconds }),
);
process.exit(own === rows.length && empty === 0 ? 0 : 1);
