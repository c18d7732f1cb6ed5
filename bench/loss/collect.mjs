// Collects text and code from folders of this machine into JSON lines, for a training run that needs
// real text where nothing can be downloaded: installed packages, headers, documentation, man pages.
//
//   node bench/loss/collect.mjs OUT [--megabytes 400] FOLDER...
//
// Writes OUT/part-NN.jsonl with one document a line, { text, source }. Files of equal bytes count
// once. Documents are ordered by their hash, so every part of the result is a mixture of them all. It
// is read backwards, because `prepare` holds documents out by the beginning of such a hash.
import { createHash } from "node:crypto";
import { mkdirSync, opendirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { extname, join } from "node:path";
import { parseArgs } from "node:util";
import { gunzipSync } from "node:zlib";

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { megabytes: { type: "string", default: "400" } },
});
const [out, ...folders] = positionals;
if (!out || folders.length === 0)
  throw new Error("usage: node bench/loss/collect.mjs OUT FOLDER...");

const code =
  "c cc cpp cxx h hh hpp hxx cu cuh inl inc py pyi pyx pxd js cjs mjs ts css sh bash pl pm java go rs rb lua r jl f f90 cmake proto sql m4 td";
const prose = "md rst txt tex html htm texi org 1 2 3 4 5 6 7 8";
const extensions = new Set([...code.split(" "), ...prose.split(" ")].map((name) => `.${name}`));
const skipped = new Set([".git", "node_modules", "__pycache__", "proc", "sys", "dev"]);
/** A document shorter than this says little, and one longer than the limit is a table. */
const [leastBytes, mostBytes] = [256, 512 * 1024];

function* filesOf(folder) {
  let entries;
  try {
    entries = opendirSync(folder);
  } catch {
    return;
  }
  for (let entry = entries.readSync(); entry; entry = entries.readSync()) {
    const path = join(folder, entry.name);
    // Links would lead to the same files again.
    if (entry.isDirectory() && !skipped.has(entry.name)) yield* filesOf(path);
    else if (entry.isFile()) yield path;
  }
  entries.closeSync();
}

/** A file's text; null for another kind of file, and for bytes that are no UTF-8. */
function textOf(path) {
  const packed = path.endsWith(".gz");
  const name = packed ? path.slice(0, -3) : path;
  // Files in /usr/share/doc often have no extension: copyright, changelog.Debian.
  const isDoc = path.includes("/share/doc/") && !/\.(png|svg|jpe?g|gif|pdf|json|xml)$/.test(name);
  if (!isDoc && !extensions.has(extname(name).toLowerCase())) return null;
  try {
    if (statSync(path).size > mostBytes) return null;
    const bytes = packed ? gunzipSync(readFileSync(path)) : readFileSync(path);
    if (bytes.length < leastBytes || bytes.length > mostBytes || bytes.includes(0)) return null;
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    return null;
  }
}

const documents = new Map();
let copies = 0;
for (const folder of folders) {
  const before = documents.size;
  for (const path of filesOf(folder)) {
    const text = textOf(path);
    if (text === null) continue;
    const hash = [...createHash("sha256").update(text).digest("hex")].reverse().join("");
    if (documents.has(hash)) copies++;
    else documents.set(hash, { text, source: path });
  }
  console.log(`${folder}: ${documents.size - before} documents`);
}
const order = [...documents.keys()].sort();
const most = Number(values.megabytes) * 1e6;
const partBytes = 16e6;
mkdirSync(out, { recursive: true });
let [bytes, part, taken] = [0, 0, 0];
let [lines, held] = [[], 0];
const flush = () => {
  if (lines.length === 0) return;
  writeFileSync(join(out, `part-${String(part++).padStart(2, "0")}.jsonl`), lines.join(""));
  [lines, held] = [[], 0];
};
for (const hash of order) {
  const line = `${JSON.stringify(documents.get(hash))}\n`;
  lines.push(line);
  held += line.length;
  bytes += line.length;
  taken++;
  if (held >= partBytes) flush();
  if (bytes >= most) break;
}
flush();
console.log(
  `${taken} of ${documents.size} documents, ${(bytes / 1e6).toFixed(1)} MB; ${copies} files were copies`,
);
