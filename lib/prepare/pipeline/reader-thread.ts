import { parentPort, workerData } from "node:worker_threads";
import { nameOptionsAsFlags } from "../../core/option-names.js";
import { buffersOf, type ReadTask, readBatches } from "./batch.js";
import { sendError } from "./errors.js";
import type { FromReader, ToReader } from "./reader-pool.js";

// Reads one task at a time, and sends no more batches than the pool has allowed.

const port = parentPort as NonNullable<typeof parentPort>;
if ((workerData as { flags: boolean }).flags) nameOptionsAsFlags();
let allowance = 0;
let wake = (): void => {};

port.on("message", (message: ToReader) => {
  if (message.kind === "more") {
    allowance++;
    wake();
  } else {
    allowance = message.allowance;
    void work(message.task);
  }
});

async function work(task: ReadTask): Promise<void> {
  try {
    for await (const batch of readBatches(task)) {
      while (allowance === 0) {
        await new Promise<void>((resolve) => {
          wake = resolve;
        });
      }
      allowance--;
      port.postMessage({ kind: "batch", batch } satisfies FromReader, buffersOf(batch));
    }
    port.postMessage({ kind: "done" } satisfies FromReader);
  } catch (error) {
    port.postMessage({ kind: "failed", error: sendError(error) } satisfies FromReader);
  }
}
