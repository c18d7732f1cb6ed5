/** A program: takes the lock of FOLDER, reports it, and holds it until it is killed. */
import { writeSync } from "node:fs";
import { acquireRunLock } from "../../../lib/checkpoint/lock.js";

const [folder = "", mode = "hold"] = process.argv.slice(2);
try {
  const lock = acquireRunLock(folder);
  writeSync(1, `locked ${lock.takenOverFrom ?? "fresh"}\n`);
  if (mode === "release") lock.release();
  if (mode === "die") process.kill(process.pid, "SIGKILL");
  if (mode === "hold") setInterval(() => {}, 1000);
} catch (error) {
  writeSync(1, `${(error as Error).name} ${(error as Error).message.replaceAll("\n", " ")}\n`);
  process.exitCode = (error as { exitCode?: number }).exitCode ?? 70;
}
