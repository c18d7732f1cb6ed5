// `prepare` at size: speed beside the tokenizer's package alone, kill storms, and inputs of unusual form.
//
//   node bench/data.mjs speed  FOLDER [--mb 32]              MB per CPU second and per second, alternating
//   node bench/data.mjs storm  FOLDER [--kills 20] [--mean 5] killed at random and restarted: the bytes of one clean run
//   node bench/data.mjs big    [--scale 1]                   100 MB line, a million documents, 500 MB parquet, 5 GB shard
//
// FOLDER holds text, code or records; `npm run build:ts` first. Work goes to --work (default: a folder in the system's
// temporary folder), which is removed at the end.
import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { createWriteStream, readdirSync, readFileSync, rmSync, statSync } from "node:fs";
import { mkdir, open, writeFile } from "node:fs/promises";
import { availableParallelism, cpus, tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const root = fileURLToPath(new URL("..", import.meta.url));
const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    mb: { type: "string", default: "32" },
    kills: { type: "string", default: "20" },
    mean: { type: "string", default: "5" },
    scale: { type: "string", default: "1" },
    workers: { type: "string", default: String(availableParallelism()) },
    kind: { type: "string", default: "auto" },
    tokenizer: { type: "string", default: join(root, "assets/quickstart") },
    work: { type: "string", default: join(tmpdir(), `llamaforge-bench-data-${process.pid}`) },
    dist: { type: "string", default: join(root, "dist") },
  },
});
const [mode, corpus] = positionals;
const { work } = values;
const library = (name) => resolve(values.dist, "data", name);

/** A preparation in a process of its own, so that its time and memory are its own. */
function preparing(options) {
  const program = `
    const { prepare } = await import(${JSON.stringify(library("prepare.js"))});
    const r = await prepare(${JSON.stringify(options)});
    const { userCPUTime: u, systemCPUTime: s } = process.resourceUsage();
    console.log(JSON.stringify({ cpu: (u + s) / 1e6, peak: process.resourceUsage().maxRSS * 1024,
      resumed: r.resumedDocuments, splits: r.dataset.splits, sources: r.dataset.sources }));`;
  const child = spawn(process.execPath, ["--input-type=module", "-e", program], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  let text = "";
  child.stdout.on("data", (data) => {
    text += data;
  });
  let peak = 0;
  let cpu = 0;
  const watch = setInterval(() => {
    const all = tree(child.pid);
    peak = Math.max(peak, all.bytes);
    cpu = Math.max(cpu, all.cpu);
  }, 250);
  const done = new Promise((settle) => {
    child.on("exit", (code, signal) => {
      clearInterval(watch);
      if (code !== 0 && signal !== "SIGKILL")
        throw new Error(`prepare ended with ${code ?? signal}`);
      const result = code === 0 ? JSON.parse(text.trim().split("\n").at(-1)) : null;
      settle({ code, signal, result, peak, cpu });
    });
  });
  return { child, done };
}

/** Memory and CPU seconds of a process and its children. */
function tree(pid) {
  const total = { bytes: 0, cpu: 0 };
  const visit = (id) => {
    try {
      const fields = readFileSync(`/proc/${id}/stat`, "utf8").split(") ")[1].split(" ");
      // What several processes share counts once.
      const rollup = readFileSync(`/proc/${id}/smaps_rollup`, "utf8");
      total.bytes += Number(/^Pss:\s+(\d+)/m.exec(rollup)[1]) * 1024;
      total.cpu += (Number(fields[11]) + Number(fields[12])) / 100;
      const tasks = readdirSync(`/proc/${id}/task`);
      for (const task of tasks) {
        const children = readFileSync(`/proc/${id}/task/${task}/children`, "utf8").trim();
        for (const child of children === "" ? [] : children.split(" ")) visit(child);
      }
    } catch {}
  };
  visit(pid);
  return total;
}

function hashOf(folder) {
  const hash = createHash("sha256");
  for (const name of readdirSync(folder).sort()) {
    hash.update(`${name} ${statSync(join(folder, name)).size}\n`);
    hash.update(readFileSync(join(folder, name)));
  }
  return hash.digest("hex");
}

const base = (out, inputs = [{ path: corpus, kind: values.kind }]) => ({
  inputs,
  out: join(work, out),
  tokenizer: values.tokenizer,
  workers: Number(values.workers),
  maxRunShare: 1,
});
const mb = (bytes) => `${Math.round(bytes / 1e6)} MB`;

/** The first documents of the corpus, up to --mb, as one jsonl file: both sides read the same. */
async function sample() {
  const { readBatches, readTasks } = await import(library("pipeline/batch.js"));
  const { findInput } = await import(library("readers/find.js"));
  const input = { path: corpus, kind: values.kind };
  const { files } = await findInput(input);
  const texts = [];
  let bytes = 0;
  // Files from all over the corpus.
  const step = Math.max(1, Math.floor(files.length / 4000));
  const some = files.filter((_, index) => index % step === 0);
  const options = { invalidUtf8: "replace", badRecords: "skip" };
  outer: for (const task of readTasks([{ input, files: some }], options, {
    file: 0,
    record: 0,
    byte: 0,
  })) {
    for await (const { text, ends, flags } of readBatches(task)) {
      for (const [place, end] of ends.entries()) {
        const part = Buffer.from(text.subarray(place === 0 ? 0 : ends[place - 1], end)).toString();
        if (flags[place] & 1) texts.push(part);
        else texts[texts.length - 1] += part;
        bytes += end - (place === 0 ? 0 : ends[place - 1]);
      }
      if (bytes >= Number(values.mb) * 1e6) break outer;
    }
  }
  await writeFile(
    join(work, "sample.jsonl"),
    texts.map((text) => JSON.stringify({ text })).join("\n"),
  );
  return { texts: texts.length, bytes };
}

/** The tokenizer's package alone: texts in memory, `encodeBatch` on all cores, ids dropped. */
function alone() {
  const program = `
    import { readFileSync } from "node:fs";
    import { Tokenizer } from ${JSON.stringify(join(root, "node_modules/tokenizers/index.js"))};
    const t = Tokenizer.fromFile(${JSON.stringify(join(values.tokenizer, "tokenizer.json"))});
    const texts = readFileSync(${JSON.stringify(join(work, "sample.jsonl"))}, "utf8").split("\\n").map((l) => JSON.parse(l).text);
    const start = performance.now();
    const before = process.resourceUsage();
    let tokens = 0;
    for (let at = 0; at < texts.length; at += 256)
      for (const e of await t.encodeBatch(texts.slice(at, at + 256), { addSpecialTokens: false })) tokens += e.getLength();
    const after = process.resourceUsage();
    console.log(JSON.stringify({ seconds: (performance.now() - start) / 1000, tokens,
      cpu: (after.userCPUTime + after.systemCPUTime - before.userCPUTime - before.systemCPUTime) / 1e6 }));`;
  return new Promise((resolve) => {
    const child = spawn(process.execPath, ["--input-type=module", "-e", program]);
    let text = "";
    child.stdout.on("data", (data) => {
      text += data;
    });
    child.stderr.pipe(process.stderr);
    child.on("exit", () => resolve(JSON.parse(text)));
  });
}

async function speed() {
  const { texts, bytes } = await sample();
  console.log(
    `${texts} documents, ${mb(bytes)}, ${cpus()[0].model}, ${availableParallelism()} cores`,
  );
  const rounds = [];
  for (let round = 0; round < 3; round++) {
    const package_ = await alone();
    const start = performance.now();
    const ours = await preparing(base(`speed-${round}`, [{ path: join(work, "sample.jsonl") }]))
      .done;
    const seconds = (performance.now() - start) / 1000;
    // The tree is sampled, so the last moments of the children are missing: less than 0.25 s each.
    rounds.push({ alone: bytes / 1e6 / package_.cpu, ours: bytes / 1e6 / ours.cpu });
    console.log(
      `round ${round}: alone ${(bytes / 1e6 / package_.seconds).toFixed(2)} MB/s, ` +
        `${(bytes / 1e6 / package_.cpu).toFixed(2)} MB per CPU second; prepare ${(bytes / 1e6 / seconds).toFixed(2)} MB/s ` +
        `with start and end, ${(bytes / 1e6 / ours.cpu).toFixed(2)} MB per CPU second; peak ${mb(ours.peak)} in all processes`,
    );
  }
  const mean = (pick) => rounds.reduce((sum, round) => sum + pick(round), 0) / rounds.length;
  const ratio = mean((round) => round.ours) / mean((round) => round.alone);
  console.log(
    `prepare needs ${(100 / ratio).toFixed(0)}% of the package's CPU time: ${(100 * ratio).toFixed(0)}% of its speed`,
  );
}

async function storm() {
  // Shards so small that a run is rarely killed before its first one is done.
  const options = { ...base("clean"), deduplicate: true, shardTokens: 2 ** 18 };
  const start = performance.now();
  const clean = await preparing(options).done;
  const seconds = (performance.now() - start) / 1000;
  const { sources } = clean.result;
  const bytes = sources.reduce((sum, source) => sum + source.bytes, 0);
  const tokens = sources.reduce((sum, source) => sum + source.tokens, 0);
  console.log(
    `clean: ${mb(bytes)}, ${tokens} tokens, ${seconds.toFixed(0)} s, ${(bytes / 1e6 / seconds).toFixed(2)} MB/s, ` +
      `${(bytes / 1e6 / clean.cpu).toFixed(2)} MB per CPU second, peak ${mb(clean.peak)} in all processes`,
  );
  const expected = hashOf(options.out);
  let kills = 0;
  for (let round = 0; ; round++) {
    const run = preparing({ ...options, out: join(work, "killed"), workers: 1 + (round % 3) });
    const wait = (0.2 + 1.6 * Math.random()) * Number(values.mean) * 1000;
    const timer =
      kills < Number(values.kills) ? setTimeout(() => run.child.kill("SIGKILL"), wait) : null;
    const { code, signal, result } = await run.done;
    clearTimeout(timer);
    if (signal === "SIGKILL") {
      kills++;
      continue;
    }
    if (code !== 0) throw new Error(`round ${round} ended with ${code}`);
    const same = hashOf(join(work, "killed")) === expected;
    console.log(
      `finished after ${kills} kills, ${result.resumed} documents taken over: ${same ? "the same bytes" : "OTHER BYTES"}`,
    );
    if (!same) process.exitCode = 1;
    if (kills >= Number(values.kills)) break;
    rmSync(join(work, "killed"), { recursive: true });
  }
  console.log(`${kills} kills`);
}

async function big() {
  const scale = Number(values.scale);
  const word = (i) =>
    "the quick brown fox jumps over a lazy dog while rain falls on old stones".split(" ")[
      (i * 7 + (i >> 3)) % 15
    ];
  const prose = (n, seed) => Array.from({ length: n }, (_, i) => word(i * 31 + seed)).join(" ");
  const chunk = Array.from({ length: 64 }, (_, k) => `${k} ${prose(3000, k * 17)}. `).join("");
  const show = (name, { result, peak, cpu }, bytes) => {
    const { splits } = result;
    console.log(
      `${name}: ${mb(bytes)} input, ${splits.train.documents + splits.validation.documents} documents, ` +
        `${splits.train.tokens + splits.validation.tokens} tokens, peak ${mb(peak)} in all processes, ${cpu.toFixed(0)} CPU s`,
    );
  };
  const write = async (name, parts) => {
    const stream = createWriteStream(join(work, name));
    for (const part of parts)
      if (!stream.write(part)) await new Promise((r) => stream.once("drain", r));
    await new Promise((resolve) => stream.end(resolve));
    return statSync(join(work, name)).size;
  };
  const prepareFile = (name, extra = {}) =>
    preparing({ ...base(`${name}-out`, [{ path: join(work, name) }]), ...extra }).done;

  const count = Math.round((100e6 * scale) / chunk.length);
  const size = await write(
    "line.jsonl",
    (function* () {
      yield '{"text": "';
      for (let i = 0; i < count; i++) yield chunk;
      yield '"}\n';
    })(),
  );
  show("a line", await prepareFile("line.jsonl"), size);
  const textSize = await write(
    "one.txt",
    (function* () {
      for (let i = 0; i < count * 3; i++) yield chunk;
    })(),
  );
  show("a text file", await prepareFile("one.txt"), textSize);
  const tiny = await write(
    "tiny.jsonl",
    (function* () {
      for (let i = 0; i < 1e6 * scale; i++) yield `{"text": "document ${i}"}\n`;
    })(),
  );
  show("tiny documents", await prepareFile("tiny.jsonl", { deduplicate: true }), tiny);

  const { ParquetWriter, fileWriter } = await import("hyparquet-writer");
  const file = join(work, "big.parquet");
  const writer = new ParquetWriter({
    writer: fileWriter(file),
    schema: [
      { name: "root", num_children: 2 },
      { name: "text", type: "BYTE_ARRAY", converted_type: "UTF8", repetition_type: "REQUIRED" },
      { name: "n", type: "INT32", repetition_type: "REQUIRED" },
    ],
    codec: "UNCOMPRESSED",
  });
  const rows = 500;
  for (let group = 0; group < (500e6 * scale) / (rows * 20_000); group++) {
    const data = Array.from(
      { length: rows },
      (_, i) => `${group}/${i} ${chunk.slice(i * 7, i * 7 + 20_000)}`,
    );
    writer.write({
      columnData: [
        { name: "text", data },
        { name: "n", data: data.map((_, i) => i) },
      ],
      rowGroupSize: rows,
    });
  }
  writer.finish();
  show("a parquet file", await prepareFile("big.parquet"), statSync(file).size);
  await sparse();
}

/** A shard of 5 GB that takes no space: opened and read at its ends, in bounded memory. */
async function sparse() {
  const { TokenDataset } = await import(library("shards.js"));
  const { Tokenizer } = await import(library("tokenizer.js"));
  const folder = join(work, "sparse");
  await mkdir(folder);
  const tokenizer = await Tokenizer.load(values.tokenizer);
  const files = await tokenizer.copyTo(folder);
  const tokens = 2_684_354_560;
  const shard = await open(join(folder, "train-00000.bin"), "w");
  await shard.truncate(tokens * 2);
  await shard.write(Uint8Array.of(7, 0), 0, 2, tokens * 2 - 2);
  await shard.close();
  const index = Buffer.alloc(16);
  index.writeBigUInt64LE(BigInt(tokens), 8);
  await writeFile(join(folder, "train-00000.idx"), index);
  const none = { tokens: 0, documents: 0, bytes: 0, shards: [] };
  const sha256 = "0".repeat(64);
  const entry = {
    file: "train-00000.bin",
    tokens,
    documents: 1,
    bytes: 1,
    sha256,
    indexSha256: sha256,
    repeatedTokens: 0,
  };
  const { vocabSize, eosId, bosId } = tokenizer;
  const dataset = {
    format: "llamaforge-tokens",
    version: 1,
    dtype: "uint16",
    vocabSize,
    eosId,
    bosId,
    documentStart: "none",
    documentEnd: "eos",
    tokenizer: { sha256: tokenizer.sha256, files },
    validation: { fraction: 0, threshold: 0 },
    splits: { train: { tokens, documents: 1, bytes: 1, shards: [entry] }, validation: none },
    sources: [{ path: "x", kind: "text", documents: 1, bytes: 1 }],
  };
  await writeFile(join(folder, "dataset.json"), JSON.stringify(dataset));
  const opened = await TokenDataset.open(folder, { sequenceLength: 2047 });
  const ids = new Int32Array(2048);
  await opened.read(opened.windows - 1, ids);
  const last = opened.windows * 2047;
  const ok = last === tokens - 1 ? ids[2047] === 7 : ids.every((id) => id === 0);
  console.log(
    `a shard of ${mb(tokens * 2)}: ${opened.windows} windows, the last read ${ok ? "right" : "WRONG"}, ${mb(process.memoryUsage.rss())} of memory`,
  );
  if (!ok) process.exitCode = 1;
  await opened.close();
}

await mkdir(work, { recursive: true });
try {
  if (mode === "speed" && corpus) await speed();
  else if (mode === "storm" && corpus) await storm();
  else if (mode === "big") await big();
  else {
    console.error("usage: node bench/data.mjs speed FOLDER | storm FOLDER | big");
    process.exitCode = 2;
  }
} finally {
  rmSync(work, { recursive: true, force: true });
}
