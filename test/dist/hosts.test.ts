/** Ranks on two hosts train as on one. The tests also cut the network between the hosts. */
import { readFile, writeFile } from "node:fs/promises";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { parse, stringify } from "yaml";
import { buildLibrary } from "../cli/build.js";
import { tinyData } from "../support/tiny-run.js";
import { TwoHosts, whyNoHosts } from "./hosts.js";
import {
  expectCodes,
  figures,
  fileOfStep,
  newestStep,
  type RankProcess,
  runToEnd,
  startRank,
  stepsOf,
  torchrun,
  untilSaid,
  writeConfig,
} from "./ranks.js";

const obstacle = whyNoHosts();
if (obstacle !== null && !process.env.CI) {
  console.warn(`SKIPPED: ranks on two hosts need network namespaces, and here: ${obstacle}`);
}

test.runIf(process.env.CI)("this machine can stand for two hosts", () => {
  expect(obstacle, "CI must be able to make network namespaces (root, or CAP_NET_ADMIN)").toBe(
    null,
  );
});

describe.skipIf(obstacle !== null)(`two hosts${obstacle === null ? "" : `: ${obstacle}`}`, () => {
  let two: TwoHosts;
  let folder: string;
  let data: string;
  beforeAll(async () => {
    buildLibrary();
    ({ folder, data } = await tinyData());
    two = TwoHosts.open();
  });
  afterAll(() => two?.close());

  const port = 29_500;
  const worldSize = 4;
  const perHost = 2;

  /** Two ranks on each host. */
  function startOnHosts(config: string, masterAddress = two.hosts[0].address): RankProcess[] {
    return Array.from({ length: worldSize }, (_, rank) => {
      const host = two.hosts[Math.floor(rank / perHost)] as (typeof two.hosts)[0];
      const env = {
        ...torchrun(rank, worldSize, port, perHost),
        MASTER_ADDR: masterAddress,
      };
      return startRank(["train", config], env, host.command);
    });
  }
  const endsOf = (ranks: readonly RankProcess[]) => Promise.all(ranks.map(({ ended }) => ended));

  const timeoutSeconds = 5;
  const options = {
    parallel: "hybrid_shard",
    optimizer: { peakLr: 1e-3, warmupSteps: 2, decaySteps: 100 },
    checkpoint: { every: 10 },
    evaluate: { every: 0, batches: 1 },
    distributed: { timeoutSeconds, startTimeoutSeconds: 120 },
  };

  test("the network is cut: all ranks exit 6 and name one that is missing; plugged in again, a restart has the bits of an unbroken run on one host", async () => {
    const { file, out } = await writeConfig(folder, data, worldSize, {
      ...options,
      steps: 100_000,
    });
    const ranks = startOnHosts(file);
    await untilSaid(ranks[0] as RankProcess, /step 20\//);
    two.connected = false;
    const cut = performance.now();
    const results = await endsOf(ranks);
    // The timeout and some time for a busy machine. TCP's own timeout is far longer.
    expect(performance.now() - cut).toBeLessThan((timeoutSeconds + 25) * 1000);
    expectCodes(results, 6);
    for (const [rank, { stderr }] of results.entries()) {
      const missing = rank < perHost ? "ranks 2 and 3 do not" : "rank 0\\b.* does not";
      expect(stderr).toMatch(new RegExp(`^llamaforge: rank ${rank} of 4: ${missing} answer`, "m"));
    }

    two.connected = true;
    const steps = (await newestStep(out)) + 10;
    const config = parse(await readFile(file, "utf8"));
    await writeFile(file, stringify({ ...config, steps }));
    expectCodes(await endsOf(startOnHosts(file)), 0);
    const unbroken = await writeConfig(folder, data, worldSize, { ...options, steps });
    expectCodes(await runToEnd(unbroken.file, { worldSize, perHost }), 0);
    expect(figures(await stepsOf(out))).toEqual(figures(await stepsOf(unbroken.out)));
    for (const name of ["model.safetensors", "optimizer-state.safetensors"]) {
      const [mine, whole] = [
        await fileOfStep(out, steps, name),
        await fileOfStep(unbroken.out, steps, name),
      ];
      expect(mine.equals(whole), name).toBe(true);
    }
  }, 300_000);

  test("rank 0's host calls itself 127.0.1.1, as Debian does: the others reach its store and its ranks", async () => {
    const [first, second] = two.hosts;
    two.setNames(0, ["127.0.1.1 first", `${second.address} second`]);
    two.setNames(1, [`${first.address} first`, "127.0.1.1 second"]);
    const { file } = await writeConfig(folder, data, worldSize);
    expectCodes(await endsOf(startOnHosts(file, "first")), 0);
  }, 120_000);
});
