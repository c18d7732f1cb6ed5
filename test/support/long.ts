const fault = (...names: string[]) => names.map((name) => `test/fault/${name}.test.ts`);
const dist = (...names: string[]) => names.map((name) => `test/dist/${name}.test.ts`);

/**
 * Test files that `npm test` leaves to `npm run test:all`: storms, runs that are killed again and
 * again, calls of every export with wrong values, several hosts, every strategy on several ranks,
 * installations, programs compiled with sanitizers, and slow disks. All other files are in `npm
 * test`, which takes ten minutes at most on two cores, the installation and the build included.
 * `npx vitest run` on its own runs both.
 */
export const longTests = [
  ...fault(
    "a02-exports",
    "a06-worker-threads",
    "a08-leaks",
    "a10-supervisor",
    "c01-kill-during-save",
    "c12-slow-save",
    "c15-senseless-state",
    "d07-slow-storage",
    "d6-encoders",
    "d6-keeps-work",
    "d6-prepare-resumes",
    "n07-silent-corruption",
    "r01-going-back",
    "r02-kill-before-save",
    "t02-any-text",
  ),
  ...dist(
    "bench-gpus",
    "comm-death",
    "comm-hang",
    "comm-store",
    "communication-thread",
    "early-end",
    "exit-during-abort",
    "faults",
    "fine-tuning",
    "hosts",
    "plan",
    "resume",
    "strategies",
    "strategies-bf16",
    "strategies-muon",
    "volume",
  ),
  "test/cli/bench-programs.test.ts",
  "test/cli/bench.test.ts",
  "test/cli/loss-programs.test.ts",
  "test/cli/odd-files.test.ts",
  "test/cli/start-signals.test.ts",
  "test/cuda/arena.test.ts",
  "test/cuda/host.test.ts",
  "test/house/doc-code-run.test.ts",
  "test/house/site.test.ts",
  "test/hub/hub.test.ts",
  "test/io/fuzz-driver.test.ts",
  "test/ops/teams.test.ts",
  "test/package/install.test.ts",
  "test/package/typescript.test.ts",
  "test/report/html.test.ts",
  "test/serve/storm.test.ts",
  "test/train/continued.test.ts",
  "test/train/fine-tuned.test.ts",
  "test/train/muon.test.ts",
];
