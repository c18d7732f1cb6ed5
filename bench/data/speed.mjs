// Compares `prepare` with the tokenizer's package alone, on the same documents.
import { spawn } from "node:child_process";
import { writeFile } from "node:fs/promises";
import { availableParallelism, cpus } from "node:os";
import { join } from "node:path";
import { base, library, recipe, record, root, round, values, work } from "./options.mjs";
import { preparing } from "./preparing.mjs";

/**
 * Writes documents from all over the corpus, up to --mb, into one jsonl file, so that both sides
 * read the same documents.
 */
async function sample() {
  const { findInput } = await import(library("prepare/readers/find.js"));
  const { inputs } = await recipe();
  const options = { invalidUtf8: "replace", badRecords: "skip" };
  const found = [];
  for (const input of inputs) found.push({ input, ...(await findInput(input)) });
  const total = found.flatMap(({ files }) => files).reduce((sum, file) => sum + file.bytes, 0);
  const share = (Number(values.mb) * 1e6) / total;
  const texts = [];
  let bytes = 0;
  // A file of records contributes its share of bytes; of files that are one document each, every
  // n-th is taken.
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

/** Documents of one file, up to `limit` bytes. */
async function firstTexts(source, limit, options) {
  const { readBatches, readTasks } = await import(library("prepare/pipeline/batch.js"));
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

/** Runs the tokenizer's package alone: texts in memory, `encodeBatch` on all cores, ids dropped. */
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

export async function speed() {
  const { texts, bytes } = await sample();
  console.log(
    `${texts} documents, ${Math.round(bytes / 1e6)} MB, ${cpus()[0].model}, ${availableParallelism()} cores`,
  );
  const rounds = [];
  const sampled = { inputs: [{ path: join(work, "sample.jsonl") }] };
  for (let number = 0; number < 3; number++) {
    const package_ = await alone();
    const start = performance.now();
    const ours = await preparing(base(`speed-${number}`, sampled)).done;
    const seconds = (performance.now() - start) / 1000;
    // The process tree is sampled, so up to `watchMs` at the end of each child is missing.
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
