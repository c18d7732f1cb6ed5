// Measures `prepare` at scale: speed compared with the tokenizer's package alone, kill storms, and
// inputs of unusual form.
//
//   node bench/data/run.mjs speed  FOLDER [--mb 32]    MB per CPU second and per second, alternating
//   node bench/data/run.mjs storm  FOLDER [--kills 20] killed at random; bytes equal a clean run's
//   node bench/data/run.mjs big    [--scale 1]         100 MB line, a million documents, 500 MB parquet, 5 GB shard
//
// FOLDER holds text, code or records; `--config FILE` instead names a recipe with several inputs.
// Run `npm run build:ts` first. The storm's default mean time between kills makes all kills land in
// about one preparation; --mean sets another. With --beside (and --mean) the clean run goes on at
// the same time. A run works in a folder of its own in --work (default: the system's temporary
// folder), which is removed at the end. `--results FILE` writes the figures into a JSON file, next
// to those of the other modes.
import { rmSync } from "node:fs";
import { mkdir } from "node:fs/promises";
import { big } from "./big.mjs";
import { corpus, mode, values, work } from "./options.mjs";
import { speed } from "./speed.mjs";
import { storm } from "./storm.mjs";

await mkdir(work, { recursive: true });
try {
  const given = corpus !== undefined || values.config !== undefined;
  if (mode === "speed" && given) await speed();
  else if (mode === "storm" && given) await storm();
  else if (mode === "big") await big();
  else {
    console.error("usage: node bench/data/run.mjs speed FOLDER | storm FOLDER | big");
    process.exitCode = 2;
  }
} finally {
  rmSync(work, { recursive: true, force: true });
}
