// docs/faults.md, rows A10 and P6. The supervisor reports a native crash and restarts the run from
// its newest checkpoint. It gives up on a run without progress, and leaves a run alone that ended
// for a reason.
import { existsSync, readdirSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { beforeAll, expect, test } from "vitest";
import { supervise } from "../../lib/cli/supervise.js";
import { buildLibrary } from "../cli/build.js";
import { fault, lastStep, outcome, train, until, writeConfig } from "../support/child-run.js";
import { tinyData } from "../support/tiny-run.js";

let place: { folder: string; data: string };
beforeAll(async () => {
  buildLibrary();
  place = await tinyData();
});

test("a run that is ended by SIGSEGV again and again goes on from its checkpoints, with the bits of an unbroken one", async () => {
  const whole = await writeConfig(place, "whole", { steps: 17 });
  expect(await train(whole.file).ended).toMatchObject({ code: 0 });
  const { file, out } = await writeConfig(place, "crashing", { steps: 17 });
  // Each process ends at its second save, when the first one is complete: at steps 10, 15 and 17.
  const { code, stderr } = await train(file, ["--supervise"], fault("save:2:segv")).ended;
  expect(code).toBe(0);
  const reports = stderr.split("\n").filter((line) => line.includes("was ended by"));
  expect(reports).toHaveLength(3);
  for (const [index, saved] of [5, 10, 15].entries()) {
    expect(reports[index]).toMatch(
      new RegExp(
        `ended by SIGSEGV after step \\d+.*; the newest state is the checkpoint of step ${saved}$`,
      ),
    );
  }
  expect(await outcome(out, 17)).toEqual(await outcome(whole.out, 17));
}, 120_000);

test("restarts that bring no checkpoint come to an end, with the bug's exit code", async () => {
  const { file } = await writeConfig(place, "stuck");
  const { code, stderr } = await train(
    file,
    ["--supervise", "--max-restarts", "1"],
    fault("step:2:abort"),
  ).ended;
  expect(code).toBe(70);
  expect(stderr.match(/was ended by SIGABRT/g)).toHaveLength(2);
  expect(stderr).toContain("given up: 1 restarts in a row brought no new checkpoint");
}, 120_000);

test("what would happen again is not tried again", async () => {
  const { file } = await writeConfig(place, "wrong");
  const missing = ["--supervise", "--resume", join(place.folder, "nowhere")];
  const { code, stderr } = await train(file, missing).ended;
  expect(code).toBe(4);
  expect(stderr).toContain("not started again: checkpoints cannot be read or written");
}, 60_000);

test("SIGTERM is handed on: the run saves, both exit 75", async () => {
  const { file, out } = await writeConfig(place, "asked", { steps: 2000 });
  const { child, ended } = train(file, ["--supervise"]);
  await until(async () => (await lastStep(out)) >= 3, child);
  child.kill("SIGTERM");
  expect(await ended).toMatchObject({ code: 75, signal: null });
  const stopped = await lastStep(out);
  expect(readdirSync(out)).toContain(`step-${`${stopped}`.padStart(10, "0")}`);
}, 60_000);

test("a run whose supervisor is killed saves and ends too: nothing trains on unattended", async () => {
  const { file, out } = await writeConfig(place, "orphan", { steps: 5000 });
  const { child, ended } = train(file, ["--supervise"]);
  await until(async () => (await lastStep(out)) >= 3, child);
  child.kill("SIGKILL");
  // The run holds the other end of the output, so the stream closes when the run has ended too.
  expect(await ended).toMatchObject({ signal: "SIGKILL" });
  const stopped = await lastStep(out);
  expect(stopped).toBeLessThan(5000);
  expect(existsSync(join(out, `step-${`${stopped}`.padStart(10, "0")}`, "manifest.json"))).toBe(
    true,
  );
  expect(await readFile(join(out, "run.lock"), "utf8")).toBe("");
}, 60_000);

test("a stop during the pause before a restart ends it at once", async () => {
  const reports: string[] = [];
  const ending = supervise({
    command: () => ["-e", "process.exit(9)"],
    out: join(place.folder, "none"),
    maxRestarts: 5,
    delayMs: 60_000,
    onReport: (message) => reports.push(message),
  });
  await until(() => reports.length > 0);
  expect(reports[0]).toBe(
    "the run ended with 9 before its first step; the newest state is the beginning",
  );
  process.emit("SIGTERM", "SIGTERM");
  expect(await ending).toBe(75);
});
