// docs/faults.md, row S3: nobody reads a run's output, the disk behind it is full, or its terminal
// is gone. Training continues to its end.
import { execFile } from "node:child_process";
import { beforeAll, expect, test } from "vitest";
import { buildLibrary, root } from "../cli/build.js";
import { cliFile } from "../cli/run.js";
import { lastStep, train, until, writeConfig } from "../support/child-run.js";
import { tinyData } from "../support/tiny-run.js";

let place: { folder: string; data: string };
beforeAll(async () => {
  buildLibrary();
  place = await tinyData();
});

/** Exit code of `set -o pipefail; llamaforge train FILE REST`. */
async function shell(file: string, rest: string): Promise<number | string | null | undefined> {
  const command = `set -o pipefail; "${process.execPath}" "${cliFile}" train "${file}" ${rest}`;
  return await new Promise((resolve) => {
    execFile("bash", ["-c", command], (error) => resolve(error ? error.code : 0));
  });
}

test.each([
  ["one line of it is read", "2>&1 | head -1"],
  ["the disk it goes to is full", "> /dev/full 2> /dev/full"],
  ["it is closed from the start", ">&- 2>&-"],
])(
  "%s",
  async (name, rest) => {
    const { file, out } = await writeConfig(place, name.replaceAll(" ", "-"));
    expect(await shell(file, rest)).toBe(0);
    expect(await lastStep(out)).toBe(12);
  },
  120_000,
);

test("of a command whose output is its result, a full disk is an error", async () => {
  const plan = `"${process.execPath}" "${cliFile}" plan configs/quickstart.yaml > /dev/full`;
  const [code, said] = await new Promise<[unknown, string]>((resolve) => {
    execFile("bash", ["-c", plan], { cwd: root }, (error, _, stderr) =>
      resolve([error?.code ?? 0, stderr]),
    );
  });
  expect(said).toMatch(/the output cannot be written: .*ENOSPC/);
  expect(code).toBe(2);
});

test("SIGHUP while it trains", async () => {
  const { file, out } = await writeConfig(place, "hangup", { steps: 60, checkpoint: { every: 0 } });
  const { child, ended } = train(file);
  await until(async () => (await lastStep(out)) > 0, child);
  child.kill("SIGHUP");
  expect(await ended).toMatchObject({ code: 0, signal: null });
  expect(await lastStep(out)).toBe(60);
}, 120_000);
