// One rank of a test: node comm-rank.mjs JOB, with RANK, WORLD_SIZE, MASTER_PORT, TOKEN and OPTIONS
// in the environment. Results go to stdout, one JSON value per line. The program is plain
// JavaScript over dist/, so that it runs wherever the library does.
import { createHash } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";

const library = new URL("../../dist/", import.meta.url);
const load = (module) => import(new URL(module, library).href);
const { Store } = await load("dist/store.js");
const { Communicator } = await load("dist/communicator.js");
const { parseDevice, setDefaultDevice } = await load("core/device.js");
const { empty } = await load("core/tensor.js");
const { full, tensor } = await load("core/create.js");
const { memory, synchronize } = await load("core/runtime.js");
const { matmul } = await load("ops/matmul.js");
const { TimelineRecorder } = await load("dist/timeline.js");
const { Zero1 } = await load("dist/zero1.js");
const { Llama } = await load("model/llama.js");
const { Canary } = await load("train/canary.js");

const rank = Number(process.env.RANK);
const worldSize = Number(process.env.WORLD_SIZE);
const options = JSON.parse(process.env.OPTIONS);
const { timeoutMs = 20_000, startMs = 20_000 } = options;
const device = parseDevice(options.device);
setDefaultDevice(device);

const say = (value) => process.stdout.write(`${JSON.stringify(value)}\n`);
const everyone = Array.from({ length: worldSize }, (_, i) => i);

const connect = () =>
  Store.connect({
    host: options.host ?? "127.0.0.1",
    port: Number(process.env.MASTER_PORT),
    rank,
    worldSize,
    token: process.env.TOKEN,
    timeoutMs: startMs,
  });

const communicate = (store, ranks = everyone, name = "all") =>
  Communicator.create({ store, device, name, ranks, rank, timeoutMs, startTimeoutMs: startMs });

/** Whole numbers, whose sums are exact in f32 and, for up to four ranks, in bf16. */
const number = (r, i) => ((i * 7 + r * 13) % 101) - 50;
const numbers = (r, n) => Float32Array.from({ length: n }, (_, i) => number(r, i));
const sum = (n, ranks) =>
  Float32Array.from({ length: n }, (_, i) => ranks.reduce((total, r) => total + number(r, i), 0));

/** Numbers with all bits in use. */
function noise(r, n) {
  let state = 12345 + 777 * r;
  return Float32Array.from({ length: n }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) | 0;
    return Math.fround((state / 2 ** 31) * 2 ** ((state >>> 3) % 12));
  });
}

let wrong = 0;
function expectEqual(what, got, wanted) {
  const bad = wanted.findIndex((value, i) => !Object.is(got[i] + 0, value + 0));
  if (got.length === wanted.length && bad < 0) return;
  wrong++;
  say({ wrong: what, at: bad, got: got[bad], wanted: wanted[bad] });
}

const hash = async (x) =>
  createHash("sha256")
    .update(new Uint8Array(await x.toBytes()))
    .digest("hex");

async function values(all) {
  const own = all.rank;
  const { size } = all;
  for (const dtype of ["f32", "bf16"]) {
    for (const n of [1, 3, 31, 1000, 9001]) {
      const what = `${n} ${dtype}`;
      const make = (r, count = n) => tensor(numbers(r, count), { dtype });
      const total = sum(n, everyone);

      const x = make(own);
      all.allReduce(x).wait();
      expectEqual(`allReduce of ${what}`, await x.toArray(), total);

      if (n <= 1000) {
        const mean = make(own);
        all.allReduce(mean, "avg").wait();
        const wanted = tensor(
          total.map((value) => value / size),
          { dtype },
        );
        expectEqual(`mean of ${what}`, await mean.toArray(), await wanted.toArray());
      }

      const whole = make(own, n * size);
      const part = empty([n], { dtype });
      all.reduceScatter(whole, part).wait();
      const sums = sum(n * size, everyone).subarray(own * n, (own + 1) * n);
      expectEqual(`reduceScatter to ${what}`, await part.toArray(), sums);
      const place = whole.view([n], own * n);
      all.reduceScatter(whole, place).wait();
      expectEqual(`reduceScatter in place to ${what}`, await place.toArray(), sums);

      const gathered = empty([size, n], { dtype });
      all.allGather(make(own), gathered).wait();
      const joined = Float32Array.from(everyone.flatMap((r) => [...numbers(r, n)]));
      expectEqual(`allGather of ${what}`, await gathered.toArray(), joined);
      const inPlace = full([size, n], NaN, { dtype });
      const mine = inPlace.view([n], own * n);
      mine.native.write(
        dtype === "f32" ? numbers(own, n) : new Uint16Array(await make(own).toBytes()),
      );
      all.allGather(mine, inPlace).wait();
      expectEqual(`allGather in place of ${what}`, await inPlace.toArray(), joined);
    }
  }
  // More than one message carries.
  if (size === 2) {
    const n = 1_150_001;
    const x = full([n], own + 0.5);
    all.allReduce(x).wait();
    expectEqual("a large allReduce", await x.toArray(), new Float32Array(n).fill(2));
    const part = empty([n]);
    all.reduceScatter(full([2, n], own + 0.5), part).wait();
    expectEqual("a large reduceScatter", await part.toArray(), new Float32Array(n).fill(2));
  }
  for (const root of everyone) {
    const x = rank === root ? tensor(numbers(root, 5001)) : empty([5001]);
    all.broadcast(x, root).wait();
    expectEqual(`broadcast from ${root}`, await x.toArray(), numbers(root, 5001));
  }
  const ids = empty([size], { dtype: "i32" });
  all.allGather(tensor(new Int32Array([rank * 3 + 1])), ids).wait();
  expectEqual(
    "allGather of i32",
    await ids.toArray(),
    everyone.map((r) => r * 3 + 1),
  );
}

/** Sums whose bits depend on the order. The test compares them between ranks. */
async function bits(all) {
  const n = 100_008;
  const hashes = {};
  for (const dtype of ["f32", "bf16"]) {
    const x = tensor(noise(rank, n), { dtype });
    const copy = tensor(noise(rank, n), { dtype });
    const part = empty([n / all.size], { dtype });
    const whole = empty([n], { dtype });
    all.allReduce(x).wait();
    all.reduceScatter(copy, part).wait();
    all.allGather(part, whole).wait();
    hashes[dtype] = { allReduce: await hash(x), inTwoSteps: await hash(whole) };
    if (dtype === "f32") {
      const inOrder = noise(0, n);
      for (const r of everyone.slice(1)) {
        noise(r, n).forEach((value, i) => {
          inOrder[i] = Math.fround(inOrder[i] + value);
        });
      }
      hashes.inOrder = createHash("sha256").update(new Uint8Array(inOrder.buffer)).digest("hex");
    }
  }
  // 256 + 1 is 256 in bf16, 256 + 1 + 1 is 258.
  const few = tensor([[256, 1, 1, 0][rank]], { dtype: "bf16" });
  all.allReduce(few).wait();
  return { ...hashes, few: await few.item() };
}

const jobs = {
  async values() {
    const store = await connect();
    const all = await communicate(store);
    await values(all);
    say({ wrong, backend: all.backend, bits: await bits(all), again: await bits(all) });
    await all.close();
    await store.close();
  },

  /** The memory is free again, and a group inside another works independently. */
  async groups() {
    const store = await connect();
    const all = await communicate(store);
    const half = worldSize / 2;
    const shard = everyone.filter((r) => Math.floor(r / half) === Math.floor(rank / half));
    const replica = everyone.filter((r) => r % half === rank % half);
    const inner = await communicate(store, shard, `shard-${Math.floor(rank / half)}`);
    const outer = await communicate(store, replica, `replica-${rank % half}`);
    await synchronize();
    const before = memory();
    for (let round = 0; round < 20; round++) {
      const x = tensor(numbers(rank, 10_000));
      const part = empty([10_000 / half]);
      const whole = empty([10_000]);
      inner.reduceScatter(x, part).wait();
      x.dispose(); // the collective still holds its memory
      outer.allReduce(part).wait();
      const work = inner.allGather(part, whole);
      part.dispose();
      work.wait();
      const junk = full([10_000], NaN);
      junk.dispose();
      const got = await whole.toArray();
      expectEqual("sum in two levels", got, sum(10_000, everyone));
      whole.dispose();
    }
    await all.barrier();
    const after = memory();
    say({
      wrong,
      leftTensors: after.tensors - before.tensors,
      leftBytes: after.bytes - before.bytes,
      stats: { inner: inner.stats, outer: outer.stats },
    });
    for (const each of [outer, inner, all]) await each.close();
    await store.close();
  },

  /** A collective ends while the compute stream is busy with later work. */
  async overlap() {
    const store = await connect();
    const all = await communicate(store);
    const x = tensor(numbers(rank, 1_000_000));
    const a = full([options.side, options.side], 1e-3);
    matmul(a, a).dispose();
    all.allReduce(full([4], 1)).wait();
    await synchronize();
    const work = all.allReduce(x);
    let busy = true;
    let b = a;
    for (let i = 0; i < options.products; i++) b = matmul(a, b);
    const computed = synchronize().then(() => {
      busy = false;
    });
    await work.done();
    const beside = busy;
    let ticks = 0;
    const timer = setInterval(() => ticks++, 1);
    await computed;
    clearInterval(timer);
    work.wait();
    expectEqual("the sum", await x.toArray(), sum(1_000_000, everyone));
    say({ wrong, beside, ticks });
    await all.close();
    await store.close();
  },

  /** Two steps: in the first everything waits for a sum, in the second products hide it. */
  async timeline() {
    const store = await connect();
    const all = await communicate(store);
    const x = tensor(numbers(rank, 1_000_000));
    const a = full([options.side, options.side], 1e-3);
    matmul(a, a).dispose();
    all.allReduce(x).wait();
    await all.barrier();
    const recorder = new TimelineRecorder(rank, [all]);
    const products = () => {
      for (let i = 0; i < options.products; i++) matmul(a, a).dispose();
    };
    recorder.boundary();
    recorder.phase("waits");
    // Work before the sum delays it, so that the wait is enqueued long before the sum begins.
    products();
    all.allReduce(x).wait();
    products();
    recorder.boundary();
    recorder.phase("hides");
    const work = all.allReduce(x);
    products();
    work.wait();
    recorder.boundary();
    recorder.phase("not shown");
    all.allReduce(x).wait();
    const timeline = await recorder.end();
    // The timeline does not record any more.
    all.allReduce(x).wait();
    await synchronize();
    say(timeline);
    await all.close();
    await store.close();
  },

  async store() {
    const store = await connect();
    const own = `key of ${rank}`;
    await store.set(own, new Uint8Array([rank, 0, 255]));
    for (const r of everyone) expectEqual("value", await store.get(`key of ${r}`), [r, 0, 255]);
    if (rank === 0) setTimeout(() => store.set("late", "now"), 200);
    const late = Buffer.from(await store.get("late")).toString();
    const count = await store.add("counter", rank + 1);
    await store.barrier("b");
    await store.barrier("b");
    const total = await store.add("counter", 0);
    const big = new Uint8Array(5 << 20).fill(rank);
    await store.set(`big ${rank}`, big);
    const other = await store.get(`big ${(rank + 1) % worldSize}`);
    const never = await store.get("never", { timeoutMs: 100 }).catch((error) => error.message);
    const alone =
      rank === 0
        ? await store.barrier("alone", { timeoutMs: 200 }).catch((error) => error.message)
        : null;
    const tooLarge = await store
      .set("too large", new Uint8Array((16 << 20) + 1))
      .catch((error) => error.code);
    say({ wrong, late, count, total, big: [other.length, other[7]], never, alone, tooLarge });
    await store.barrier("end");
    await store.close();
    const closed = await store.get("late").catch((error) => error.message);
    say({ closed });
  },

  async connectOnly() {
    try {
      const store = await connect();
      await store.barrier("here");
      say({ connected: true });
      await store.close();
    } catch (error) {
      say({ name: error.constructor.name, code: error.code, message: error.message });
      process.exitCode = error.exitCode ?? 1;
    }
  },

  /** The last rank sends its part of the new weights late. The canary's comparison waits for it. */
  async canary() {
    const store = await connect();
    const all = await communicate(store);
    const parallel = new Zero1({ world: all, reduce: "fp32" });
    const sizes = { vocabSize: 64, hiddenSize: 32, intermediateSize: 48, contextLength: 16 };
    const heads = { layers: 2, heads: 2, kvHeads: 1, headSize: 16, tieEmbeddings: false };
    const config = { ...sizes, ...heads, ropeTheta: 10_000, rmsNormEps: 1e-5 };
    const model = await Llama.create(config, { device, dtype: "f32", seed: 1, parallel });
    const { groups } = model.store;
    for (const { ownedWeights, size } of groups) {
      ownedWeights.native.write(numbers(rank, size / worldSize));
    }
    await all.barrier();
    if (rank === worldSize - 1) await sleep(options.lateMs);
    for (const group of groups) parallel.weightsChanged(group);
    await new Canary(model.store, 1).verify(1, () => {});
    say("equal");
    await all.close();
    await store.close();
  },

  /**
   * Waits for a collective that never ends, and exits as soon as it learns that another rank is
   * lost.
   */
  async leaving() {
    const store = await connect();
    const all = await communicate(store);
    store.onFailure((error) => process.exit(options.exitWith ?? error.exitCode));
    all.allReduce(empty([8]));
    say("ready");
    setInterval(() => {}, 1000);
  },

  /**
   * Rank `options.who` does `options.what` at its fourth collective. The test observes the others.
   */
  async trouble() {
    const store = await connect();
    const all = await communicate(store);
    const x = full([1000], 1);
    const { who, what } = options;
    for (let i = 1; i <= 3; i++) {
      all.allReduce(x).wait();
      await synchronize();
    }
    say("ready");
    if (rank === who) {
      if (what === "kill") process.kill(process.pid, "SIGKILL");
      if (what === "stop") process.kill(process.pid, "SIGSTOP");
      if (what === "throw") throw new Error("this rank's own trouble");
      if (what === "exit") process.exit(3);
      if (what === "abort") all.abort("no more of this");
      if (what === "busy") for (;;);
      if (what === "size") all.allReduce(full([999], 1)).wait();
      if (what === "kind") all.broadcast(x, 0).wait();
    }
    try {
      const work = all.allReduce(x);
      if (options.blocked) {
        const end = Date.now() + 30_000;
        while (Date.now() < end);
      }
      await work.done();
      work.wait();
      await synchronize();
      // NCCL's kernels may start with the wrong arguments; the check comes a moment later.
      await store.barrier("never");
      say("went on");
    } catch (error) {
      say({ name: error.constructor.name, code: error.code, message: error.message });
      if (options.exitSelf) process.exit(error.exitCode);
    }
    setInterval(() => {}, 1000); // the watchdog ends this process
  },
};

await jobs[process.argv[2]]();
