// Runs tests again with the kernels for CPUs without AVX-512: tests that compute on the CPU or
// depend on its instructions.
//
//   npm run test:v3                        after `npm test`
//   npm run test:v3 -- test/ops/linear     some of them
//
// If the CPU has no other kernels, `npm test` has already run all of these tests, and nothing is
// left to do.
import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";

const set = "x86-64-v3";
const dependent = [
  ...["core", "ops", "nn", "optim", "model", "config", "plan", "train", "golden", "examples"].map(
    (name) => `test/${name}/`,
  ),
  "test/core/grad-check.test.ts",
  "test/dist/plan.test.ts",
  "test/dist/strategies",
  "test/dist/resume.test.ts",
  "test/fault/a07",
  "test/fault/a08",
  "test/fault/k04",
  "test/fault/n07",
  "test/fault/r01",
];

const root = fileURLToPath(new URL("..", import.meta.url));
const { LLAMAFORGE_CPU_ISA: asked, ...environment } = process.env;
if (asked !== undefined && asked !== set) {
  console.error(`test:v3 sets LLAMAFORGE_CPU_ISA to ${set} itself; it is "${asked}" here`);
  process.exit(2);
}
const chosen = instructionSet(environment);
if ([set, "neon", "generic"].includes(chosen)) {
  console.log(
    `test:v3: this CPU runs the ${chosen} kernels anyway, and \`npm test\` has tested them`,
  );
  process.exit(0);
}
const withSet = { ...environment, LLAMAFORGE_CPU_ISA: set };
const forced = instructionSet(withSet);
if (forced !== set) {
  console.error(`test:v3: asked for the ${set} kernels, the addon took ${forced}`);
  process.exit(1);
}
const given = process.argv.slice(2);
console.log(`test:v3: ${set} kernels instead of ${chosen}`);
const { status, error } = spawnSync(
  process.execPath,
  ["node_modules/vitest/vitest.mjs", "run", ...(given.length > 0 ? given : dependent)],
  { cwd: root, env: withSet, stdio: "inherit" },
);
if (status !== 0) {
  console.error(
    `test:v3: tests fail with LLAMAFORGE_CPU_ISA=${set}${error ? `: ${error.message}` : ""}`,
  );
}
process.exit(status ?? 1);

/**
 * The kernels that the addon chooses in `env`. It runs in a new process, because the addon chooses
 * once per process.
 */
function instructionSet(env) {
  const code =
    'process.stdout.write(require("node-gyp-build")(process.cwd()).buildInfo().instructionSet)';
  const { status, stdout, stderr } = spawnSync(process.execPath, ["-e", code], {
    cwd: root,
    env,
    encoding: "utf8",
  });
  if (status === 0) return stdout;
  process.stderr.write(stderr);
  console.error("test:v3: the addon cannot be loaded: `npm test` builds it");
  process.exit(1);
}
