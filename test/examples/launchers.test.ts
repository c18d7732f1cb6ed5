/**
 * The launcher scripts of the examples, with a fake launcher in PATH that records its arguments.
 */
import { spawnSync } from "node:child_process";
import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { parseAllDocuments } from "yaml";
import { root } from "../cli/build.js";

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "llamaforge-launchers-"));
  for (const name of ["srun", "scontrol", "torchrun"]) {
    const file = join(folder, name);
    writeFileSync(file, `#!/bin/sh\necho ${name} "$@"\n[ ${name} = scontrol ] || exit "$CODE"\n`);
    chmodSync(file, 0o755);
  }
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** Runs a script of the examples with a launcher that ends with `code`. */
function run(script: string, code: number, env: Record<string, string> = {}) {
  const { status, stdout, stderr } = spawnSync("bash", [join(root, "examples", script), "a.yaml"], {
    encoding: "utf8",
    env: { PATH: `${folder}${delimiter}${process.env.PATH}`, CODE: `${code}`, ...env },
  });
  expect(stderr).toBe("");
  return { status, lines: stdout.trim().split("\n") };
}

const main = "node_modules/llamaforge/dist/cli/main.js";

describe("slurm/train.sbatch", () => {
  const job = { SLURM_JOB_ID: "42", SLURM_CPUS_PER_TASK: "8" };

  test("the ranks are node itself, get their processors, and may end by themselves", () => {
    const { lines } = run("slurm/train.sbatch", 0, job);
    expect(lines).toHaveLength(1);
    expect(lines[0]).toContain("srun --kill-on-bad-exit=0 --wait=60 --cpus-per-task=8 ");
    expect(lines[0]).toContain(` node ${main} train a.yaml --set device=cuda`);
  });

  test.each([75, 6, 137, 143, 253])("code %i: the job starts again", (code) => {
    const { status, lines } = run("slurm/train.sbatch", code, job);
    expect({ status, last: lines.at(-1) }).toEqual({ status: code, last: "scontrol requeue 42" });
  });

  test.each([0, 1, 2, 3, 4, 5, 70])("code %i: it does not", (code) => {
    const { status, lines } = run("slurm/train.sbatch", code, job);
    expect({ status, calls: lines.length }).toEqual({ status: code, calls: 1 });
  });

  test("what is lost at every start ends; what is stopped and saved goes on for ever", () => {
    const often = { ...job, SLURM_RESTART_COUNT: "20" };
    expect(run("slurm/train.sbatch", 6, often).lines).toHaveLength(1);
    expect(run("slurm/train.sbatch", 137, often).lines).toHaveLength(1);
    expect(run("slurm/train.sbatch", 6, { ...often, MAX_RESTARTS: "21" }).lines).toHaveLength(2);
    expect(run("slurm/train.sbatch", 75, often).lines).toHaveLength(2);
  });
});

test("torchrun/train.sh: the ranks are node itself", () => {
  const { status, lines } = run("torchrun/train.sh", 0, { NODES: "2", NODE: "1", MASTER: "first" });
  expect({ status, calls: lines.length }).toEqual({ status: 0, calls: 1 });
  expect(lines[0]).toMatch(/^torchrun --no-python --nnodes 2 --node-rank 1 /);
  expect(lines[0]).toContain(` node ${main} train a.yaml --set device=cuda`);
});

test("kubernetes/job.yaml: the ranks are node itself, and torchrun leaves them most of the grace period", () => {
  const text = readFileSync(join(root, "examples/kubernetes/job.yaml"), "utf8");
  const [, job] = parseAllDocuments(text).map((document) => document.toJSON());
  const { containers, terminationGracePeriodSeconds } = job.spec.template.spec;
  const [{ args, env }] = containers;
  expect(args[0]).toMatch(
    new RegExp(`^exec torchrun --no-python .* node ${main} train /run/config.yaml `),
  );
  const patience = env.find(
    ({ name }: { name: string }) => name === "TORCH_ELASTIC_SHUTDOWN_TIMEOUT",
  );
  expect(Number(patience.value)).toBeGreaterThan(200);
  expect(Number(patience.value)).toBeLessThan(terminationGracePeriodSeconds);
});
