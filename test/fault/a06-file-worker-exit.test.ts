// docs/faults.md, row A6, for files: a worker thread ends while the pool still works for it. The
// process is undisturbed.
import { spawn } from "node:child_process";
import { createRequire } from "node:module";
import { expect, test } from "vitest";
import { temporaryFolder } from "../checkpoint/support/harness.js";

const finder = createRequire(import.meta.url).resolve("node-gyp-build");

const program = `
const { Worker, isMainThread, workerData } = require("node:worker_threads");
const { io } = require(${JSON.stringify(finder)})(process.cwd());
const { folder, round } = workerData ?? {};
if (isMainThread) {
  (async () => {
    for (let round = 0; round < 12; round++) {
      const worker = new Worker(__filename, { workerData: { folder: process.argv[2], round } });
      await new Promise((resolve) => worker.on("message", resolve));
      await worker.terminate();
    }
    console.log("alive");
  })();
} else {
  const { parentPort } = require("node:worker_threads");
  (async () => {
    new io.FileLock(folder + "/lock-" + round);
    const file = new io.DurableFile(folder + "/" + round);
    await file.open();
    for (let i = 0; i < 4; i++) await file.write(new Uint8Array(4 << 20));
    void io.hashFile(folder + "/" + round).catch(() => {});
    void io.hashFile("/nowhere").catch(() => {});
    void file.write(new Uint8Array(16 << 20));
    parentPort.postMessage("busy");
  })();
}
`;

test("workers are terminated in the middle of file work, and their locks are free again", async () => {
  const { path, remove } = temporaryFolder();
  const { writeFileSync } = await import("node:fs");
  writeFileSync(`${path}/program.cjs`, program);
  const child = spawn(process.execPath, [`${path}/program.cjs`, path], {
    stdio: ["ignore", "pipe", "pipe"],
  });
  let output = "";
  child.stdout.on("data", (data: Buffer) => {
    output += data.toString();
  });
  child.stderr.on("data", (data: Buffer) => {
    output += data.toString();
  });
  const [code, signal] = await new Promise<[number | null, string | null]>((resolve) => {
    child.on("close", (...end) => resolve(end));
  });
  expect({ code, signal, output }).toEqual({ code: 0, signal: null, output: "alive\n" });
  const { io } = await import("../../lib/checkpoint/native-io.js");
  for (let round = 0; round < 12; round += 1) new io.FileLock(`${path}/lock-${round}`).release();
  remove();
});
