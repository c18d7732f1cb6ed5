import { join } from "node:path";
import { UsageError } from "../core/errors.js";
import { openRegular } from "../files/small-file.js";
import { runFiles } from "./metrics.js";
import { shardCheckFile } from "./shard-check.js";

/** Bytes at the beginning of a file that show whose it is. */
const headBytes = 2 ** 13;

/** The files that a run writes over in its folder, and how each of them begins. */
const records: readonly [name: string, isOurs: (head: string) => boolean][] = [
  [runFiles.info, (head) => /^\{\s*"config":/.test(head)],
  [runFiles.metrics, isStep],
  [runFiles.report, (head) => head.includes("· LlamaForge</title>")],
  [shardCheckFile, (head) => /^\{\s*"files":/.test(head)],
];

/** Whether a text begins with a step's record. A crash may have torn the only one. */
function isStep(head: string): boolean {
  if (/^\{"step":\d+,"tokens":\d/.test(head)) return true;
  return !head.includes("\n") && /^\{"step":\d+(,("t\w*"?:?)?)?$|^\{("s\w*"?:?)?$/.test(head);
}

/**
 * Refuses a folder with files of the user's that a run would write over: notes in `metrics.jsonl`,
 * a `report.html` of something else. In the folder of an earlier run, which its `run.json` shows,
 * all of these files are the run's.
 * @throws UsageError naming the file
 */
export async function refuseForeignRecords(folder: string): Promise<void> {
  for (const [name, isOurs] of records) {
    const file = join(folder, name);
    const head = await headOf(file);
    if (head === null || head === "") continue;
    if (!isOurs(head)) {
      throw new UsageError(
        `${file} is in the way: a run writes this file, and what is there is no run's; ` +
          "move or rename it, or choose another output folder",
      );
    }
    if (name === runFiles.info) return;
  }
}

/**
 * The beginning of a file, without the zeros of a crash; null where there is no regular file, which
 * the writers report.
 */
async function headOf(file: string): Promise<string | null> {
  const handle = await openRegular(file).catch(() => null);
  if (handle === null) return null;
  try {
    const bytes = Buffer.alloc(headBytes);
    const { bytesRead } = await handle.read(bytes, 0, headBytes, 0);
    return bytes.toString("utf8", 0, bytesRead).replaceAll("\0", "").trim();
  } finally {
    await handle.close();
  }
}
