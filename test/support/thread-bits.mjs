// Runs kernels with LLAMAFORGE_THREADS threads and prints one hash of each result. The CPU device
// fixes the number of threads at its first use, so a test that compares two numbers needs two
// processes.
import { createHash } from "node:crypto";
import { createRequire } from "node:module";

const addon = createRequire(import.meta.url)("node-gyp-build")(process.cwd());
const { NativeTensor, ops } = addon;

// 0 is the CPU, 1 + i GPU i.
const device =
  Number(/^cuda:?(\d*)$/.exec(process.env.LLAMAFORGE_TEST_DEVICE ?? "")?.[1] ?? -1) + 1;
const make = (dtype, shape) => new NativeTensor(device, dtype, shape);
function random(dtype, shape, seed, scale = 1) {
  const x = make(dtype, shape);
  ops.philoxNormal(x, 0, scale, seed, 0);
  return x;
}
const hash = async (x) =>
  createHash("sha256")
    .update(Buffer.from(await x.read()))
    .digest("hex");

const results = { threads: addon.buildInfo().threads };
for (const dtype of ["f32", "bf16"]) {
  for (const [batch, time, heads, kvHeads, size] of [
    [2, 200, 4, 1, 64],
    [1, 333, 3, 3, 24],
  ]) {
    const qkv = random(dtype, [batch, time, (heads + 2 * kvHeads) * size], 1);
    const dO = random(dtype, [batch, time, heads * size], 2);
    const [o, statistics, dqkv] = [
      make(dtype, [batch, time, heads * size]),
      make("f32", [2, batch, heads, time]),
      make(dtype, [batch, time, (heads + 2 * kvHeads) * size]),
    ];
    ops.attentionForward(qkv, null, o, statistics, heads, kvHeads, 0.125);
    ops.attentionBackward(dO, qkv, o, statistics, null, dqkv, heads, kvHeads, 0.125);
    const outputs = [o, statistics, dqkv];
    results[`attention ${dtype} ${time}`] = await Promise.all(outputs.map(hash));
  }
  const logits = random(dtype, [77, 5000], 3, 4);
  const targets = make("i32", [77]);
  ops.arange(targets, 0, 60);
  const [loss, ofRows, dLoss, dLogits] = [
    make("f32", []),
    make("f32", [2, 77]),
    make("f32", []),
    make(dtype, [77, 5000]),
  ];
  ops.crossEntropyForward(logits, targets, loss, ofRows, -100);
  ops.fill(dLoss, 0.5);
  ops.crossEntropyBackward(dLoss, logits, targets, ofRows, dLogits, -100);
  results[`cross entropy ${dtype}`] = [await hash(loss), await hash(ofRows), await hash(dLogits)];
  const x = random(dtype, [4, 300, 6 * 64], 4);
  const [table, turned] = [make("f32", [300, 32, 2]), make(dtype, [4, 300, 6 * 64])];
  ops.ropeTable(table, 10000);
  ops.rope(x, table, null, turned, 6, 5, 0, false);
  results[`rope ${dtype}`] = [await hash(turned)];
}
process.stdout.write(JSON.stringify(results));
