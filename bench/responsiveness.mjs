// Measures how late a timer of the same process fires while long CPU operations run:
//   node bench/responsiveness.mjs [--out FILE]
import { writeFileSync } from "node:fs";
import { cpus } from "node:os";
import { parseArgs } from "node:util";
import { buildInfo, matmul, ones, synchronize } from "../dist/index.js";

const { values: options } = parseArgs({ options: { out: { type: "string" } } });
const size = 6144;
const a = ones([size, size]);
await synchronize();
const intervalMs = 10;
const lateness = [];
let expected = performance.now() + intervalMs;
const timer = setInterval(() => {
  const now = performance.now();
  lateness.push(now - expected);
  expected = now + intervalMs;
}, intervalMs);
const started = performance.now();
for (let i = 0; i < 3; i++) matmul(a, a).dispose();
const enqueuedMs = performance.now() - started;
await synchronize();
const operationMs = (performance.now() - started) / 3;
clearInterval(timer);
const result = {
  date: new Date().toISOString().slice(0, 10),
  machine: `${cpus()[0].model.trim()}, ${buildInfo().threads} threads`,
  operation: `matmul ${size} x ${size} x ${size}, f32`,
  operationMs: Math.round(operationMs),
  enqueuedMs: Number(enqueuedMs.toFixed(2)),
  timers: lateness.length,
  latestMs: Number(Math.max(...lateness).toFixed(1)),
};
console.log(JSON.stringify(result, null, 2));
if (options.out) writeFileSync(options.out, `${JSON.stringify(result, null, 2)}\n`);
