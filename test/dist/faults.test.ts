import { appendFile, cp, mkdir, readdir, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { beforeAll, describe, expect, test } from "vitest";
import { parse, stringify } from "yaml";
import { freePort } from "../../lib/dist/free-port.js";
import { buildLibrary, root } from "../cli/build.js";
import { cliFile } from "../cli/run.js";
import { tinyData } from "../support/tiny-run.js";
import { device, sharedGpuOfLaunch } from "./comm-ranks.js";
import {
  expectCodes,
  figures,
  fileOfStep,
  newestStep,
  type RankProcess,
  runToEnd,
  startRank,
  startRun,
  stepsOf,
  torchrun,
  untilSaid,
  writeConfig,
} from "./ranks.js";

let folder: string;
let data: string;
beforeAll(async () => {
  buildLibrary();
  ({ folder, data } = await tinyData());
});

/** A run that never ends by itself. Progress lines come at steps 1, 10, 20, ... */
const long = {
  steps: 100_000,
  optimizer: { peakLr: 1e-3, warmupSteps: 2, decaySteps: 100 },
  checkpoint: { every: 10 },
  evaluate: { every: 0, batches: 1 },
};

describe("a rank that is lost", () => {
  test.each([
    ["SIGKILL", "replicated"],
    ["SIGSTOP", "full_shard"],
  ] as const)(
    "%s of rank 1: the others exit 6 and name it; a restart has the bits of the unbroken run (%s)",
    async (signal, parallel) => {
      const distributed = { timeoutSeconds: 3, startTimeoutSeconds: 30 };
      const { file, out } = await writeConfig(folder, data, 2, { ...long, parallel, distributed });
      const ranks = await startRun(file, { worldSize: 2 });
      const [first, second] = ranks as [RankProcess, RankProcess];
      await untilSaid(first, /step 20\//);
      const lost = performance.now();
      second.child.kill(signal);
      const survivor = await first.ended;
      expect(performance.now() - lost).toBeLessThan(15_000);
      second.child.kill("SIGKILL");
      await second.ended;
      expect(survivor.code, survivor.stderr).toBe(6);
      expect(survivor.stderr).toMatch(/rank 1/);
      const begun = await newestStep(out);
      expect(begun).toBeGreaterThanOrEqual(10);

      // The run continues to ten steps after the checkpoint. An unbroken run goes there from the
      // start.
      const steps = begun + 10;
      const config = parse(await readFile(file, "utf8"));
      await writeFile(file, stringify({ ...config, steps }));
      expectCodes(await runToEnd(file, { worldSize: 2 }), 0);
      const unbroken = await writeConfig(folder, data, 2, { ...long, parallel, steps });
      expectCodes(await runToEnd(unbroken.file, { worldSize: 2 }), 0);
      expect(figures(await stepsOf(out))).toEqual(figures(await stepsOf(unbroken.out)));
      const name = "optimizer-state.safetensors";
      const [mine, whole] = [
        await fileOfStep(out, steps, name),
        await fileOfStep(unbroken.out, steps, name),
      ];
      expect(mine.equals(whole)).toBe(true);
    },
    120_000,
  );

  test("launch starts all ranks again from the newest checkpoint, and gives up without progress", async () => {
    const { file, out } = await writeConfig(folder, data, 2, { steps: 12 });
    // Each attempt dies at its second save, after the first one is complete. The first attempt
    // saves step 4, the second step 8, and the third reaches step 12.
    const started = startRank(
      ["launch", "--nproc", "2", "--max-restarts", "2", "--", "train", file],
      { ...sharedGpuOfLaunch(), LLAMAFORGE_TEST_FAULTS: "1", FAULT: "save:2:kill" },
    );
    const result = await started.ended;
    expect(result.stderr).toContain("the newest state is the checkpoint of step 8");
    expect(result.code, result.stderr).toBe(0);
    expect((await stepsOf(out)).at(-1)?.step).toBe(12);

    const stuck = await writeConfig(folder, data, 2, { steps: 12 });
    const hopeless = startRank(
      ["launch", "--nproc", "2", "--max-restarts", "1", "--", "train", stuck.file],
      { ...sharedGpuOfLaunch(), LLAMAFORGE_TEST_FAULTS: "1", FAULT: "step:2:exit" },
    );
    const given = await hopeless.ended;
    expect(given.stderr).toContain("given up: 1 restarts in a row brought no new checkpoint");
    expect(given.code).not.toBe(0);
  }, 120_000);
});

describe("stopping", () => {
  test.each([0, 1])("SIGTERM to rank %i: all save and exit 75 at the same step", async (asked) => {
    const { file, out } = await writeConfig(folder, data, 2, {
      ...long,
      checkpoint: { every: 0 },
      parallel: "zero1",
    });
    const ranks = await startRun(file, { worldSize: 2 });
    await untilSaid(ranks[0] as RankProcess, /step 10\//);
    ranks[asked]?.child.kill("SIGTERM");
    const results = await Promise.all(ranks.map(({ ended }) => ended));
    expectCodes(results, 75);
    const saved = (await readdir(out)).filter((name) => /^step-\d+$/.test(name));
    expect(saved).toHaveLength(1);
    const last = (await stepsOf(out)).at(-1)?.step as number;
    expect(Number(saved[0]?.slice(5))).toBe(last);
    for (const rank of [0, 1]) {
      const log = await readFile(join(out, "logs", `rank-${rank}.log`), "utf8");
      expect(log.match(/step (\d+) /g)?.at(-1)).toBe(`step ${last} `);
    }
  });
});

describe("ranks that do not do the same", () => {
  test("another option, seed or data on one rank: refused at the start, naming rank and values", async () => {
    const { file } = await writeConfig(folder, data, 2);
    const results = await runToEnd(file, {
      worldSize: 2,
      args: (rank) => (rank === 1 ? ["--set", "seed=6", "--set", "optimizer.beta2=0.9"] : []),
    });
    expectCodes(results, 2);
    for (const { stderr } of results) {
      expect(stderr).toContain("optimizer.beta2: rank 1 has 0.9, rank 0 0.95");
      expect(stderr).toContain("seed: rank 1 has 6, rank 0 5");
      expect(stderr).toContain("the data: rank 1 has");
    }
  });

  test("another build on one rank: each file that differs is named with both hashes", async () => {
    const { file } = await writeConfig(folder, data, 2);
    // Version and sources are equal. The addon and the plugin are linked anew, and one module has
    // an extra line.
    const [plugin, calledPlugin] =
      device === "cpu"
        ? ["libllamaforge_gloo.so", "the Gloo plugin"]
        : ["libllamaforge_cuda13.so", "the CUDA plugin"];
    const other = join(folder, "other-build");
    const release = join("build", "Release");
    await mkdir(join(other, release), { recursive: true });
    await cp(join(root, "dist"), join(other, "dist"), { recursive: true });
    await cp(join(root, "package.json"), join(other, "package.json"));
    await symlink(join(root, "node_modules"), join(other, "node_modules"));
    for (const name of ["llamaforge.node", plugin]) {
      await cp(join(root, release, name), join(other, release, name));
      await appendFile(join(other, release, name), "\0");
    }
    await appendFile(join(other, "dist", "train", "step.js"), "\n");
    const port = await freePort();
    const ranks = [cliFile, join(other, "dist", "cli", "main.js")].map((cli, rank) =>
      startRank(["train", file], torchrun(rank, 2, port), [], cli),
    );
    const results = await Promise.all(ranks.map(({ ended }) => ended));
    expectCodes(results, 2);
    for (const { stderr } of results) {
      expect(stderr).toContain("the ranks of this run are not set up alike: 3 problems");
      for (const what of ["LlamaForge's program", "the addon", calledPlugin]) {
        const values = new RegExp(`${what}: rank 1 has ([0-9a-f]{16}), rank 0 ([0-9a-f]{16})`);
        const [, mine, first] = values.exec(stderr) ?? [];
        expect(mine, what).toBeDefined();
        expect(mine).not.toBe(first);
      }
    }
  }, 120_000);

  test("variables that contradict themselves are all named, before anything is done", async () => {
    const { file } = await writeConfig(folder, data, 2);
    const env = { ...torchrun(3, 2, 1), MASTER_PORT: "99999", LOCAL_RANK: "x" };
    const result = await startRank(["train", file], env).ended;
    expect(result.code).toBe(2);
    expect(result.stderr).toContain("RANK: expected below WORLD_SIZE=2, got 3");
    expect(result.stderr).toContain("MASTER_PORT: expected an integer from 1 to 65535");
    expect(result.stderr).toContain('LOCAL_RANK: expected an integer from 0 to 65535, got "x"');
  });

  test("a NaN on one rank only: all skip the step, and no weight changes (docs/faults.md N1)", async () => {
    const { file, out } = await writeConfig(folder, data, 2, {
      steps: 4,
      checkpoint: { every: 1, keepLast: 9 },
    });
    const results = await runToEnd(file, {
      worldSize: 2,
      env: (rank): Record<string, string> =>
        rank === 1 ? { LLAMAFORGE_TEST_FAULTS: "1", FAULT: "loss:3:nan" } : {},
    });
    expectCodes(results, 0);
    const steps = await stepsOf(out);
    expect(steps.map(({ skipped }) => skipped)).toEqual([
      undefined,
      undefined,
      "loss not finite",
      undefined,
    ]);
    const [before, skipped, after] = await Promise.all(
      [2, 3, 4].map((step) => fileOfStep(out, step, "model.safetensors")),
    );
    expect(skipped?.equals(before as Buffer)).toBe(true);
    expect(after?.equals(before as Buffer)).toBe(false);
  });
});

describe("a rank that cannot save", () => {
  test("nobody publishes the checkpoint, and after three failures all end (docs/faults.md P4)", async () => {
    const { file, out } = await writeConfig(folder, data, 2, { ...long, checkpoint: { every: 2 } });
    const ranks = await startRun(file, { worldSize: 2 });
    await untilSaid(ranks[0] as RankProcess, /step 1\//);
    // A file in place of the output folder makes every later save fail. A save may be under way, and
    // put files into the folder while it is being removed.
    await rm(out, { recursive: true, force: true, maxRetries: 20, retryDelay: 10 });
    await writeFile(out, "");
    const [first, second] = await Promise.all(ranks.map(({ ended }) => ended));
    expect(first?.code, first?.stderr).toBe(4);
    expect(second?.code, second?.stderr).toBe(6);
  });
});
