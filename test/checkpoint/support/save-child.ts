/** A program to be killed: saves steps FROM..TO into FOLDER and reports them on stdout. */
import { writeSync } from "node:fs";
import { cleanUp } from "../../../lib/checkpoint/folder.js";
import { CheckpointWriter } from "../../../lib/checkpoint/save.js";
import { contentsOf } from "./contents.js";

const [folder = "", from = "", to = "", keepLast = "2"] = process.argv.slice(2);
// writeSync returns when the line has left the process, so a kill cannot lose it.
const say = (line: string) => writeSync(1, `${line}\n`);

await cleanUp(folder);
const writer = new CheckpointWriter(folder, {
  retention: { keepLast: Number(keepLast) },
  onSaved: ({ step }) => say(`saved ${step}`),
  onFailed: (error, step) => say(`failed ${step} ${error.message.replaceAll("\n", " ")}`),
  onWarning: (message) => say(`warning ${message.replaceAll("\n", " ")}`),
});
try {
  for (let step = Number(from); step <= Number(to); step += 1) {
    await writer.ready();
    writer.start(step, contentsOf(step));
  }
  await writer.finish();
} catch (error) {
  say(`ended ${(error as Error).message.replaceAll("\n", " ")}`);
  process.exitCode = (error as { exitCode?: number }).exitCode ?? 70;
}
