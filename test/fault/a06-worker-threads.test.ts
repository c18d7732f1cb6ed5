// docs/faults.md, row A6: several JavaScript threads load the addon, each with its own device. No
// thread blocks.
import { once } from "node:events";
import { Worker } from "node:worker_threads";
import { beforeAll, expect, test } from "vitest";
import { ones, tensor } from "../../lib/core/create.js";
import { synchronize } from "../../lib/core/runtime.js";
import { matmul } from "../../lib/ops/index.js";
import { buildLibrary, importOf } from "../cli/build.js";

beforeAll(() => buildLibrary());

const script = `
  import { parentPort, workerData } from "node:worker_threads";
  const { scope, tensor, linear, synchronize, memory } = await import(${importOf("index.js")});
  const w = tensor([1, 2, 3, 4], { shape: [2, 2], requiresGrad: true });
  for (let i = 0; i < 50; i++) {
    const s = scope();
    linear(tensor([[1, 1]]), w).backward({ gradient: tensor([[1, workerData]]) });
    s[Symbol.dispose]();
    await synchronize();
  }
  parentPort.postMessage({ grad: [...(await w.grad.toArray())], tensors: memory().tensors });
`;

const worker = (code: string, workerData: number) =>
  new Worker(new URL(`data:text/javascript,${encodeURIComponent(code)}`), { workerData });

test("several workers train side by side, each with its own device", async () => {
  const results = await Promise.all(
    [1, 2, 3].map(async (value) => {
      const child = worker(script, value);
      const [message] = await once(child, "message");
      const [code] = await once(child, "exit");
      return { message, code };
    }),
  );
  results.forEach(({ message, code }, index) => {
    const value = (index + 1) * 50;
    expect(message.grad).toEqual([50, 50, value, value]);
    expect(message.tensors).toBe(2);
    expect(code).toBe(0);
  });
});

test("workers that end or are terminated in the middle of their work take nothing with them", async () => {
  const endless = `
    const { ones, matmul, scope, synchronize } = await import(${importOf("index.js")});
    const { parentPort } = await import("node:worker_threads");
    const a = ones([256, 256]);
    let told = false;
    for (;;) {
      scope(() => { for (let i = 0; i < 20; i++) matmul(a, a); });
      const waiting = synchronize();
      if (!told) { parentPort.postMessage("at work"); told = true; }
      await waiting;
    }`;
  for (let round = 0; round < 50; round++) {
    const child = worker(endless, round);
    await once(child, "message");
    await child.terminate();
  }
  const abandoned = worker(
    `const { ones, matmul } = await import(${importOf("index.js")});
     const a = ones([512, 512]); for (let i = 0; i < 20; i++) matmul(a, a); process.exit(0);`,
    0,
  );
  expect((await once(abandoned, "exit"))[0]).toBe(0);
  expect(await tensor([1, 2]).toArray()).toEqual(Float32Array.of(1, 2));
}, 900_000);

test("the event loop turns while a long operation runs", async () => {
  const a = ones([1024, 1024]);
  await synchronize();
  let turns = 0;
  const timer = setInterval(() => turns++, 1);
  for (let i = 0; i < 8; i++) matmul(a, a).dispose();
  const enqueuedAfter = turns;
  await synchronize();
  clearInterval(timer);
  // Enqueueing returned before a timer could fire; waiting let it fire again and again.
  expect(enqueuedAfter).toBe(0);
  expect(turns).toBeGreaterThan(5);
  a.dispose();
});
