// `prepare` at size: speed beside the tokenizer's package alone, kill storms, and inputs of unusual form.
//
//   node bench/data.mjs speed  FOLDER [--mb 32]    MB per CPU second and per second, alternating
//   node bench/data.mjs storm  FOLDER [--kills 20] killed at random and restarted: the bytes of one clean run
//   node bench/data.mjs big    [--scale 1]         100 MB line, a million documents, 500 MB parquet, 5 GB shard
//
// FOLDER holds text, code or records; `--config FILE` instead names a recipe with several inputs. `npm run build:ts` first.
// The storm's mean time between kills is such that all of them land in about one preparation, unless --mean says otherwise;
// with --beside (and --mean) the clean run goes on at the same time.
// Work goes to --work (default: a folder in the system's temporary folder), which is removed at the end. `--results FILE`
// puts the figures into a JSON file, beside those of the other modes.
import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import {
  createReadStream,
  createWriteStream,
  existsSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { mkdir, open, writeFile } from "node:fs/promises";
import { availableParallelism, cpus, loadavg, tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const root = fileURLToPath(new URL("..", import.meta.url));
const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    mb: { type: "string", default: "32" },
    kills: { type: "string", default: "20" },
    mean: { type: "string" },
    beside: { type: "boolean", default: false },
    "shard-tokens": { type: "string", default: String(2 ** 24) },
    scale: { type: "string", default: "1" },
    workers: { type: "string", default: String(availableParallelism()) },
    kind: { type: "string", default: "auto" },
    config: { type: "string" },
    results: { type: "string" },
    tokenizer: { type: "string", default: join(root, "assets/quickstart") },
    work: { type: "string", default: join(tmpdir(), `llamaforge-bench-data-${process.pid}`) },
    dist: { type: "string", default: join(root, "dist") },
  },
});
const [mode, corpus] = positionals;
const { work } = values;
const library = (name) => resolve(values.dist, "data", name);

/** To ask the kernel for a large process's memory costs it tens of milliseconds. */
const watchMs = mode === "storm" ? 2000 : 250;

/** A preparation in a process of its own, so that its time and memory are its own. */
function preparing(options) {
  const program = `
    const { prepare } = await import(${JSON.stringify(library("prepare.js"))});
    const r = await prepare(${JSON.stringify(options)});
    const { userCPUTime: u, systemCPUTime: s } = process.resourceUsage();
    console.log(JSON.stringify({ cpu: (u + s) / 1e6, peak: process.resourceUsage().maxRSS * 1024,
      resumed: r.resumedDocuments, splits: r.dataset.splits, sources: r.dataset.sources,
      longest: r.longest, warnings: r.warnings }));`;
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
  }, watchMs);
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

/** SHA-256 of every file of a folder. */
async function hashesOf(folder) {
  const hashes = {};
  for (const name of readdirSync(folder).sort()) {
    const hash = createHash("sha256");
    for await (const chunk of createReadStream(join(folder, name))) hash.update(chunk);
    hashes[name] = hash.digest("hex");
  }
  return hashes;
}

/** The recipe, or the folder as the only input. */
async function recipe() {
  if (values.config === undefined) return { inputs: [{ path: corpus, kind: values.kind }] };
  const { loadPrepareConfig } = await import(library("prepare-config.js"));
  const { inputs, options } = await loadPrepareConfig(values.config, corpus);
  return { ...options, inputs };
}

const base = (out, options) => ({
  maxRunShare: 1,
  ...options,
  out: join(work, out),
  tokenizer: values.tokenizer,
  workers: Number(values.workers),
});
const mb = (bytes) => `${Math.round(bytes / 1e6)} MB`;
const round = (number, digits = 2) => Number(number.toFixed(digits));

/** Puts figures under their mode's name into the file of --results. */
function record(figures) {
  if (values.results === undefined) return;
  const all = existsSync(values.results) ? JSON.parse(readFileSync(values.results, "utf8")) : {};
  const tokenizers = join(root, "node_modules/tokenizers/package.json");
  all[mode] = {
    date: new Date().toISOString().slice(0, 10),
    cpu: `${cpus()[0].model}, ${availableParallelism()} cores`,
    loadAverage: loadavg().map((load) => round(load, 1)),
    node: process.version,
    tokenizers: JSON.parse(readFileSync(tokenizers, "utf8")).version,
    ...figures,
  };
  writeFileSync(values.results, `${JSON.stringify(all, null, 2)}\n`);
}

/** Documents from all over the corpus, up to --mb, as one jsonl file: both sides read the same. */
async function sample() {
  const { findInput } = await import(library("readers/find.js"));
  const { inputs } = await recipe();
  const options = { invalidUtf8: "replace", badRecords: "skip" };
  const found = [];
  for (const input of inputs) found.push({ input, ...(await findInput(input)) });
  const total = found.flatMap(({ files }) => files).reduce((sum, file) => sum + file.bytes, 0);
  const share = (Number(values.mb) * 1e6) / total;
  const texts = [];
  let bytes = 0;
  // Of each file of records its share; of files that are one document each, every n-th.
  for (const source of found) {
    for (const [place, file] of source.files.entries()) {
      const chosen = Math.floor(place * share) !== Math.floor((place + 1) * share);
      if (source.kind !== "records" && !chosen) continue;
      const wanted = source.kind === "records" ? file.bytes * share : file.bytes;
      const part = await firstTexts({ input: source.input, files: [file] }, wanted, options);
      texts.push(...part);
      for (const text of part) bytes += Buffer.byteLength(text);
    }
  }
  await writeFile(
    join(work, "sample.jsonl"),
    texts.map((text) => JSON.stringify({ text })).join("\n"),
  );
  return { texts: texts.length, bytes };
}

/** Documents of one file, up to so many bytes. */
async function firstTexts(source, limit, options) {
  const { readBatches, readTasks } = await import(library("pipeline/batch.js"));
  const start = { file: 0, record: 0, byte: 0 };
  const texts = [];
  let bytes = 0;
  for (const task of readTasks([source], options, start)) {
    for await (const { text, ends, flags } of readBatches(task)) {
      for (const [place, end] of ends.entries()) {
        const from = place === 0 ? 0 : ends[place - 1];
        const part = Buffer.from(text.subarray(from, end)).toString();
        if (flags[place] & 1) {
          if (bytes >= limit) return texts;
          texts.push(part);
        } else texts[texts.length - 1] += part;
        bytes += end - from;
      }
    }
  }
  return texts;
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
  const sampled = { inputs: [{ path: join(work, "sample.jsonl") }] };
  for (let number = 0; number < 3; number++) {
    const package_ = await alone();
    const start = performance.now();
    const ours = await preparing(base(`speed-${number}`, sampled)).done;
    const seconds = (performance.now() - start) / 1000;
    // The tree is sampled, so the last moments of the children are missing: less than `watchMs` each.
    const figures = {
      aloneMbPerSecond: round(bytes / 1e6 / package_.seconds),
      aloneMbPerCpuSecond: round(bytes / 1e6 / package_.cpu, 3),
      mbPerSecond: round(bytes / 1e6 / seconds),
      mbPerCpuSecond: round(bytes / 1e6 / ours.cpu, 3),
      peakMb: round(ours.peak / 1e6, 0),
    };
    rounds.push(figures);
    console.log(`round ${number}: ${JSON.stringify(figures)}`);
  }
  const sum = (field) => rounds.reduce((total, figures) => total + figures[field], 0);
  const share = round(sum("mbPerCpuSecond") / sum("aloneMbPerCpuSecond"), 3);
  console.log(`prepare has ${(100 * share).toFixed(0)}% of the package's own speed per CPU second`);
  record({ documents: texts, mb: round(bytes / 1e6, 1), rounds, shareOfPackage: share });
}

async function storm() {
  const shardTokens = Number(values["shard-tokens"]);
  const options = { ...base("clean", await recipe()), deduplicate: true, shardTokens };
  const inPeace = cleanRun(options);
  const wanted = Number(values.kills);
  if (!values.beside) await inPeace;
  const mean = values.mean === undefined ? (await inPeace).seconds / wanted : Number(values.mean);
  const folder = join(work, "killed");
  const landed = { beforeFirstNote: 0, afterANote: 0, whileNoting: 0 };
  const begun = performance.now();
  let kills = 0;
  for (let number = 0; ; number++) {
    const run = preparing({ ...options, out: folder, workers: 1 + (number % 3) });
    const wait = (0.2 + 1.6 * Math.random()) * mean * 1000;
    const timer = kills < wanted ? setTimeout(() => run.child.kill("SIGKILL"), wait) : null;
    const { code, signal, result } = await run.done;
    clearTimeout(timer);
    if (signal === "SIGKILL") {
      kills++;
      const noted = notedDocuments(`${folder}.tmp`);
      const noting = existsSync(join(`${folder}.tmp`, "prepare-progress.json.new"));
      landed[noting ? "whileNoting" : noted === null ? "beforeFirstNote" : "afterANote"]++;
      console.log(`kill ${kills} after ${(wait / 1000).toFixed(1)} s: ${noted ?? 0} documents`);
      continue;
    }
    if (code !== 0) throw new Error(`round ${number} ended with ${code}`);
    const clean = await inPeace;
    const expected = await hashesOf(options.out);
    const got = await hashesOf(folder);
    const names = [...new Set([...Object.keys(expected), ...Object.keys(got)])];
    const different = names.filter((name) => expected[name] !== got[name]);
    console.log(
      `finished after ${kills} kills, ${result.resumed} documents taken over: ` +
        (different.length === 0
          ? `the same bytes in all ${names.length} files`
          : `OTHER BYTES in ${different.join(", ")}`),
    );
    if (different.length > 0) process.exitCode = 1;
    if (kills >= wanted) {
      record({
        ...clean,
        kills,
        meanSecondsBetween: round(mean, 1),
        landed,
        stormSeconds: round((performance.now() - begun) / 1000, 0),
        files: names.length,
        equal: different.length === 0,
      });
      return;
    }
    rmSync(folder, { recursive: true });
  }
}

/** One preparation in peace, and its figures. */
async function cleanRun(options) {
  const start = performance.now();
  const { result, peak, cpu } = await preparing(options).done;
  const seconds = (performance.now() - start) / 1000;
  const sources = result.sources.map(({ path, documents, bytes, tokens, skipped }) => ({
    name: path.split("/").slice(-2).join("/"),
    documents,
    mb: round(bytes / 1e6, 1),
    tokens,
    bytesPerToken: round(bytes / tokens, 3),
    skipped,
  }));
  const sum = (field) => result.sources.reduce((total, source) => total + source[field], 0);
  const bytes = sum("bytes");
  const clean = {
    mb: round(bytes / 1e6, 1),
    documents: sum("documents"),
    tokens: sum("tokens"),
    bytesPerToken: round(bytes / sum("tokens"), 3),
    sources,
    longest: result.longest.map((one) => ({
      ...one,
      origin: one.origin.split("/").slice(-3).join("/"),
    })),
    warnings: result.warnings,
    // Of an earlier run that was broken off: the times are of the rest alone.
    ...(result.resumed > 0 && { resumedDocuments: result.resumed }),
    shards: result.splits.train.shards.length + result.splits.validation.shards.length,
    seconds: round(seconds, 0),
    cpuSeconds: round(cpu, 0),
    mbPerSecond: round(bytes / 1e6 / seconds),
    mbPerCpuSecond: round(bytes / 1e6 / cpu, 3),
    peakMb: round(peak / 1e6, 0),
  };
  console.log(`clean: ${JSON.stringify(clean)}`);
  return clean;
}

/** Documents that an unfinished preparation has on record, or null. */
function notedDocuments(folder) {
  try {
    const { sources } = JSON.parse(readFileSync(join(folder, "prepare-progress.json"), "utf8"));
    return sources.reduce((sum, source) => sum + source.documents, 0);
  } catch {
    return null;
  }
}

/** Most memory of all processes together, in MB: what docs/data.md states. */
const bounds = {
  line: 1500,
  textFile: 1000,
  tinyDocuments: 1000,
  parquetFile: 1000,
  parquetOneGroup: 1000,
  sparseShard: 200,
};

async function big() {
  const scale = Number(values.scale);
  const chunk = proseChunk();
  const count = Math.round((100e6 * scale) / chunk.length);
  const figures = {};
  const prepareFile = async (key, name, extra = {}) => {
    const start = performance.now();
    const { filter, ...more } = extra;
    const inputs = [{ path: join(work, name), ...(filter && { filter }) }];
    const options = { ...base(`${name}-out`, { inputs }), ...more };
    const { result, peak, cpu } = await preparing(options).done;
    const { train, validation } = result.splits;
    note(figures, key, {
      mb: round(statSync(join(work, name)).size / 1e6, 0),
      documents: train.documents + validation.documents,
      tokens: train.tokens + validation.tokens,
      seconds: round((performance.now() - start) / 1000, 0),
      cpuSeconds: round(cpu, 0),
      peakMb: round(peak / 1e6, 0),
    });
    rmSync(options.out, { recursive: true });
  };
  await sparse(figures);
  await writeParts("tiny.jsonl", 1e6 * scale, (i) => `{"text": "document ${i}"}\n`);
  await prepareFile("tinyDocuments", "tiny.jsonl", { deduplicate: true });
  await writeParts("line.jsonl", count + 2, (i) =>
    i === 0 ? '{"text": "' : i <= count ? chunk : '"}\n',
  );
  await prepareFile("line", "line.jsonl");
  await writeParts("one.txt", Math.ceil(count / 4), () => chunk);
  await prepareFile("textFile", "one.txt");
  // Groups of some MB, or what pyarrow makes unless told otherwise: one group of all rows, without an index of its pages.
  // All rows are read and one in twenty is encoded: it is the reading that might take memory.
  await writeParquet("big.parquet", 500e6 * scale, 500, chunk, true);
  await prepareFile("parquetFile", "big.parquet", { filter: "n < 25" });
  await writeParquet("group.parquet", 500e6 * scale, 25_000 * scale, chunk, false);
  await prepareFile("parquetOneGroup", "group.parquet", { filter: `n < ${1250 * scale}` });
  record(figures);
}

/** Prints and keeps the figures of one case; memory above its bound is a failure. */
function note(figures, key, values_) {
  figures[key] = { ...values_, boundMb: bounds[key] };
  console.log(`${key}: ${JSON.stringify(figures[key])}`);
  if (values_.peakMb <= bounds[key]) return;
  console.error(`${key}: more memory than ${bounds[key]} MB`);
  process.exitCode = 1;
}

/** A megabyte of words that are no natural text but cost the tokenizer about as much. */
function proseChunk() {
  const words = "the quick brown fox jumps over a lazy dog while rain falls on old stones".split(
    " ",
  );
  const word = (i) => words[(i * 7 + (i >> 3)) % words.length];
  const prose = (n, seed) => Array.from({ length: n }, (_, i) => word(i * 31 + seed)).join(" ");
  return Array.from({ length: 64 }, (_, k) => `${k} ${prose(3000, k * 17)}. `).join("");
}

async function writeParts(name, count, part) {
  const stream = createWriteStream(join(work, name));
  for (let i = 0; i < count; i++)
    if (!stream.write(part(i))) await new Promise((r) => stream.once("drain", r));
  await new Promise((resolve) => stream.end(resolve));
}

async function writeParquet(name, bytes, rows, chunk, offsetIndex) {
  const { ParquetWriter, fileWriter } = await import("hyparquet-writer");
  const writer = new ParquetWriter({
    writer: fileWriter(join(work, name)),
    schema: [
      { name: "root", num_children: 2 },
      { name: "text", type: "BYTE_ARRAY", converted_type: "UTF8", repetition_type: "REQUIRED" },
      { name: "n", type: "INT32", repetition_type: "REQUIRED" },
    ],
    codec: "UNCOMPRESSED",
  });
  for (let group = 0; group < bytes / (rows * 20_000); group++) {
    const data = Array.from(
      { length: rows },
      (_, i) => `${group}/${i} ${chunk.slice(i * 7, i * 7 + 20_000)}`,
    );
    writer.write({
      columnData: [
        { name: "text", data, offsetIndex },
        { name: "n", data: data.map((_, i) => i) },
      ],
      rowGroupSize: rows,
    });
  }
  writer.finish();
}

/** A shard of 5 GB that takes no space: opened and read at its ends, in bounded memory. */
async function sparse(figures) {
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
  const start = performance.now();
  const opened = await TokenDataset.open(folder, { sequenceLength: 2047 });
  const ids = new Int32Array(2048);
  await opened.read(opened.windows - 1, ids);
  const last = opened.windows * 2047;
  const right = last === tokens - 1 ? ids[2047] === 7 : ids.every((id) => id === 0);
  await opened.close();
  note(figures, "sparseShard", {
    mb: round((tokens * 2) / 1e6, 0),
    windows: opened.windows,
    lastWindowRight: right,
    seconds: round((performance.now() - start) / 1000, 1),
    peakMb: round((process.resourceUsage().maxRSS * 1024) / 1e6, 0),
  });
  if (!right) process.exitCode = 1;
}

await mkdir(work, { recursive: true });
try {
  const given = corpus !== undefined || values.config !== undefined;
  if (mode === "speed" && given) await speed();
  else if (mode === "storm" && given) await storm();
  else if (mode === "big") await big();
  else {
    console.error("usage: node bench/data.mjs speed FOLDER | storm FOLDER | big");
    process.exitCode = 2;
  }
} finally {
  rmSync(work, { recursive: true, force: true });
}
