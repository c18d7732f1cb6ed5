import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { buildLibrary, importOf } from "../cli/build.js";

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "signals-"));
  buildLibrary();
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** Runs a loop of steps that yields like the trainer, and sends signals when it reports steps. */
async function run(signals: NodeJS.Signals[], body: string) {
  const script = join(folder, "loop.mjs");
  writeFileSync(
    script,
    `import { catchStopSignals, tolerateClosedOutput } from ${importOf("cli/signals.js")};
     tolerateClosedOutput();
     const stop = catchStopSignals({ onRequest: (signal) => console.log("asked", signal) });
     ${body}`,
  );
  const child = spawn(process.execPath, [script], { stdio: ["ignore", "pipe", "pipe"] });
  let output = "";
  const pending = [...signals];
  child.stdout.on("data", (chunk: Buffer) => {
    output += chunk;
    const signal = pending.shift();
    if (signal !== undefined) child.kill(signal);
  });
  const [code, signal] = (await once(child, "exit")) as [number | null, string | null];
  return { code, signal, output };
}

const loop = `
  let step = 0;
  while (stop.requested === null && step < 100) {
    console.log("step", ++step);
    await new Promise((resolve) => setTimeout(resolve, 20));
    await new Promise((resolve) => setImmediate(resolve));
  }
  console.log("saved at", step, "asked by", stop.requested);
  process.exitCode = stop.requested ? 75 : 0;`;

it.each(["SIGTERM", "SIGINT"] as const)(
  "%s lets the step finish and the run save",
  async (signal) => {
    const { code, output } = await run([signal], loop);
    expect(code).toBe(75);
    expect(output).toMatch(new RegExp(`asked ${signal}[\\s\\S]*saved at \\d asked by ${signal}`));
  },
);

it("a second signal ends it at once with 75", async () => {
  const forever = `console.log("step 1"); setInterval(() => {}, 1000);`;
  const { code, output } = await run(["SIGTERM", "SIGINT"], forever);
  expect(code).toBe(75);
  expect(output).not.toContain("saved");
});

it("SIGHUP is ignored", async () => {
  const { code, output } = await run(["SIGHUP", "SIGHUP"], loop.replace("< 100", "< 10"));
  expect(code).toBe(0);
  expect(output).toContain("saved at 10 asked by null");
});

it("output that nobody reads does not end the process", async () => {
  const script = join(folder, "pipe.mjs");
  writeFileSync(
    script,
    `import { writeFileSync } from "node:fs";
     import { tolerateClosedOutput } from ${importOf("cli/signals.js")};
     tolerateClosedOutput();
     for (let i = 0; i < 200; i++) {
       console.log("line", i);
       await new Promise((resolve) => setImmediate(resolve));
     }
     writeFileSync(process.argv[2], "done");`,
  );
  const mark = join(folder, "mark");
  const child = spawn("bash", [
    "-c",
    `set -o pipefail; "$0" "$1" "$2" | head -1`,
    process.execPath,
    script,
    mark,
  ]);
  const [code] = await once(child, "exit");
  expect(code).toBe(0);
  expect(readFileSync(mark, "utf8")).toBe("done");
});
