/** Launchers: the exit code that `launch` returns, and torchrun's agent on its own port. */
import { once } from "node:events";
import { createServer } from "node:net";
import { beforeAll, describe, expect, test } from "vitest";
import { launch } from "../../lib/dist/launch.js";
import { buildLibrary } from "../cli/build.js";
import { tinyData } from "../support/tiny-run.js";
import { expectCodes, startRank, torchrun, writeConfig } from "./ranks.js";

describe("launch's exit code", () => {
  /** Runs ranks that end in these ways: a number is an exit code, a name a signal. */
  async function run(ends: { after: number; by: number | string }[], graceMs = 10_000) {
    const script = `
      const { after, by } = ${JSON.stringify(ends)}[process.env.RANK];
      setTimeout(() => typeof by === "number" ? process.exit(by) : process.kill(process.pid, by), after);
    `;
    const reports: string[] = [];
    const code = await launch({
      processes: ends.length,
      command: ["-e", script],
      graceMs,
      onReport: (message) => reports.push(message),
    });
    return { code, reports };
  }

  test("a rank that only lost another ends first: the cause counts", async () => {
    const { code, reports } = await run([
      { after: 1500, by: 4 },
      { after: 0, by: 6 },
      { after: 0, by: 6 },
    ]);
    expect(code).toBe(4);
    expect(reports[0]).toMatch(/^rank [12] ended with 6; the others are ending$/);
    expect(reports.slice(1)).toEqual(["rank 0 ended with 4: that was the cause"]);
  });

  test("all have lost one that ended well, or that we killed: 6", async () => {
    const left = await run([
      { after: 0, by: 0 },
      { after: 0, by: 6 },
    ]);
    expect(left.code).toBe(6);
    const hung = await run(
      [
        { after: 60_000, by: 3 },
        { after: 0, by: 6 },
      ],
      500,
    );
    expect(hung.code).toBe(6);
    expect(hung.reports.at(-1)).toBe("killed: rank 0, still there after the failure");
  });

  test("the first of several causes counts, a signal as 128 + its number; none: 0", async () => {
    const killed = await run([
      { after: 0, by: "SIGKILL" },
      { after: 1500, by: 3 },
    ]);
    expect(killed.code).toBe(137);
    const well = await run([
      { after: 0, by: 0 },
      { after: 0, by: 0 },
    ]);
    expect(well).toEqual({ code: 0, reports: [] });
  });
});

describe("torchrun", () => {
  let place: { folder: string; data: string };
  beforeAll(async () => {
    buildLibrary();
    place = await tinyData();
  });

  test("its agent serves on MASTER_PORT all the while: the ranks meet beside it", async () => {
    const agent = createServer((socket) => socket.destroy());
    // A port below the range that systems assign, so that the next one is free.
    let port = 21_000 + (process.pid % 8_000);
    for (;;) {
      const listening = once(agent, "listening").then(
        () => true,
        () => false,
      );
      agent.listen(port, "0.0.0.0");
      if (await listening) break;
      port += 2;
    }
    try {
      const { file } = await writeConfig(place.folder, place.data, 2, { steps: 4 });
      const ranks = [0, 1].map((rank) => {
        const env = { ...torchrun(rank, 2, port), TORCHELASTIC_USE_AGENT_STORE: "True" };
        return startRank(["train", file], env);
      });
      expectCodes(await Promise.all(ranks.map(({ ended }) => ended)), 0);
    } finally {
      agent.close();
    }
  }, 60_000);
});
