// Inputs of unusual form, for which memory must stay bounded.
import { rmSync, statSync } from "node:fs";
import { join } from "node:path";
import { proseChunk, writeParquet, writeParts } from "./big-files.mjs";
import { base, record, round, values, work } from "./options.mjs";
import { preparing } from "./preparing.mjs";
import { sparseShard } from "./sparse.mjs";

/** Most memory of all processes together, in MB, as docs/data.md states it. */
const bounds = {
  line: 1500,
  textFile: 1000,
  tinyDocuments: 1000,
  parquetFile: 1000,
  parquetOneGroup: 1000,
  sparseShard: 200,
};

export async function big() {
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
  note(figures, "sparseShard", await sparseShard());
  await writeParts("tiny.jsonl", 1e6 * scale, (i) => `{"text": "document ${i}"}\n`);
  await prepareFile("tinyDocuments", "tiny.jsonl", { deduplicate: true });
  await writeParts("line.jsonl", count + 2, (i) =>
    i === 0 ? '{"text": "' : i <= count ? chunk : '"}\n',
  );
  await prepareFile("line", "line.jsonl");
  await writeParts("one.txt", Math.ceil(count / 4), () => chunk);
  await prepareFile("textFile", "one.txt");
  // The first file has groups of some MB. The second is what pyarrow makes by default: one group of
  // all rows, without an index of its pages. All rows are read and one in twenty is encoded,
  // because the reading might take memory.
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
