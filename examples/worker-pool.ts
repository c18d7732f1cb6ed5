// A pool of worker threads, each with an engine of its own, behind one function. An engine fills one
// device, so a pool is for several devices: give each worker its own. On a CPU it keeps the host's
// share of the work off the main thread.
import { Worker } from "node:worker_threads";
import type { AnswerOptions } from "llamaforge";

export interface PoolAnswer {
  text: string;
  finishReason: string;
  /** Which worker wrote it. */
  worker: number;
}

export interface EnginePool {
  /** The whole answer to a prompt, from the worker with the fewest answers to write. */
  complete(prompt: string, options?: Omit<AnswerOptions, "signal" | "n">): Promise<PoolAnswer>;
  close(): Promise<void>;
}

interface Waiting {
  resolve(answer: PoolAnswer): void;
  reject(error: Error): void;
}

/** The program of a worker: it opens the model, then answers messages until it is told to end. */
const program = `
import { parentPort, workerData } from "node:worker_threads";
const { Engine, parseDevice } = await import(workerData.packageUrl);
const engine = await Engine.open(workerData.folder, { device: parseDevice(workerData.device) });
parentPort.on("message", async ({ id, prompt, options }) => {
  if (id === null) {
    engine.dispose();
    await engine.idle();
    return parentPort.close();
  }
  try {
    const { text, finishReason } = await engine.complete(prompt, { ...options, n: 1 });
    parentPort.postMessage({ id, text, finishReason });
  } catch (error) {
    parentPort.postMessage({ id, error: error.message });
  }
});
parentPort.postMessage({ id: null });
`;

/**
 * @param devices one worker for each, e.g. ["cuda:0", "cuda:1"]
 * @param library where the workers find the library
 */
export async function openPool(
  folder: string,
  devices: readonly string[],
  library = import.meta.resolve("llamaforge"),
): Promise<EnginePool> {
  const url = new URL(`data:text/javascript,${encodeURIComponent(program)}`);
  const workers = devices.map(
    (device) => new Worker(url, { workerData: { folder, device, packageUrl: library } }),
  );
  const waiting = workers.map(() => new Map<number, Waiting>());
  let count = 0;

  const ready = workers.map(
    (worker, index) =>
      new Promise<void>((resolve, reject) => {
        const answers = waiting[index] as Map<number, Waiting>;
        const fail = (error: Error) => {
          reject(error);
          for (const [, one] of answers) one.reject(error);
          answers.clear();
        };
        worker.on("error", fail);
        worker.on("exit", () => fail(new Error(`worker ${index} has ended`)));
        worker.on("message", ({ id, error, ...answer }) => {
          if (id === null) return resolve();
          const one = answers.get(id);
          answers.delete(id);
          if (error) one?.reject(new Error(error));
          else one?.resolve({ ...answer, worker: index });
        });
      }),
  );
  await Promise.all(ready).catch(async (error) => {
    await Promise.all(workers.map((worker) => worker.terminate()));
    throw error;
  });

  return {
    complete: (prompt, options = {}) =>
      new Promise((resolve, reject) => {
        const least = Math.min(...waiting.map(({ size }) => size));
        const index = waiting.findIndex(({ size }) => size === least);
        const id = count++;
        waiting[index]?.set(id, { resolve, reject });
        workers[index]?.postMessage({ id, prompt, options });
      }),
    close: async () => {
      const ended = workers.map((worker) => new Promise((resolve) => worker.once("exit", resolve)));
      for (const worker of workers) worker.postMessage({ id: null });
      await Promise.all(ended);
    },
  };
}
