// Kills `prepare` at random and restarts it until it is done, and compares its bytes with those of
// one clean run.
import { createHash } from "node:crypto";
import { createReadStream, existsSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { base, recipe, record, round, values, work } from "./options.mjs";
import { preparing } from "./preparing.mjs";

export async function storm() {
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

/** Runs one preparation without kills, and returns its figures. */
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
    // If an earlier, interrupted run was resumed, the times cover only the rest.
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

/** Number of documents that an unfinished preparation has recorded, or null. */
function notedDocuments(folder) {
  try {
    const { checkpoints } = JSON.parse(readFileSync(join(folder, "prepare-progress.json"), "utf8"));
    return checkpoints[0].sources.reduce((sum, source) => sum + source.documents, 0);
  } catch {
    return null;
  }
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
