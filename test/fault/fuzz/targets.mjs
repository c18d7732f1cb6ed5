// Every parser of foreign files, and its promise: a typed error that names the file, never the exit
// code of a bug, in bounded time. `npm run fuzz` runs them for minutes, f04-fuzz.test.ts for a
// moment.
import { createHash } from "node:crypto";
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

/**
 * @param root the repository, with dist/ built
 * @param folder scratch space, best in memory
 * @returns by name: `seeds`, valid files; `run(bytes)`, which rejects with the parser's error
 */
export async function makeTargets(root, folder) {
  const library = (module) => import(pathToFileURL(join(root, "dist", module)).href);
  mkdirSync(folder, { recursive: true });
  const file = (name, bytes) => {
    writeFileSync(join(folder, name), bytes);
    return join(folder, name);
  };
  return {
    ...(await dataTargets(root, folder, library)),
    ...(await checkpointTargets(folder, library, file)),
    ...(await configTarget(root, library, file)),
    ...(await tokenizerTarget(root, folder, library)),
  };
}

async function dataTargets(root, folder, library) {
  const { prepare } = await library("prepare/prepare.js");
  const { TokenDataset } = await library("data/shards.js");
  const { verifyDataset } = await library("data/verify.js");
  const texts = join(folder, "texts");
  mkdirSync(texts, { recursive: true });
  for (let i = 0; i < 12; i++) {
    writeFileSync(join(texts, `${i}.txt`), `The senate keeps its word in ${1790 + i}. `.repeat(9));
  }
  const data = join(folder, "data");
  const tokenizer = join(root, "assets", "quickstart");
  await prepare({ inputs: [texts], out: data, tokenizer, validationFraction: 0.2 });
  const names = readdirSync(data);
  const good = new Map(names.map((name) => [name, readFileSync(join(data, name))]));
  const shard = names.find((name) => name.startsWith("train") && name.endsWith(".bin"));
  const index = names.find((name) => name.startsWith("train") && name.endsWith(".idx"));

  const reader = (name) => ({
    seeds: [good.get(name)],
    run: async (bytes) => {
      writeFileSync(join(data, name), bytes);
      try {
        // The right hash lets the parser pass the comparison of hashes.
        if (name !== "dataset.json") forge(name, bytes);
        const dataset = await TokenDataset.open(data, { sequenceLength: 8 });
        try {
          await dataset.read(0, new Int32Array(9));
          await verifyDataset(data);
        } finally {
          await dataset.close();
        }
      } finally {
        writeFileSync(join(data, name), good.get(name));
        if (name !== "dataset.json")
          writeFileSync(join(data, "dataset.json"), good.get("dataset.json"));
      }
    },
  });
  const forge = (name, bytes) => {
    const old = createHash("sha256").update(good.get(name)).digest("hex");
    const now = createHash("sha256").update(bytes).digest("hex");
    const json = good.get("dataset.json").toString().replace(old, now);
    writeFileSync(join(data, "dataset.json"), json);
  };
  const targets = { "token-shard": reader(shard), "dataset.json": reader("dataset.json") };
  if (index !== undefined) targets["document-index"] = reader(index);
  return targets;
}

async function checkpointTargets(folder, library, file) {
  const { saveCheckpoint } = await library("checkpoint/save.js");
  const { openCheckpoint } = await library("checkpoint/load.js");
  const { readJson } = await library("checkpoint/durable.js");
  const { parseTrainerState } = await library("train/state.js");
  const run = join(folder, "run");
  mkdirSync(run, { recursive: true });
  const source = { name: "w", dtype: "F32", shape: [4], bytes: () => new Uint8Array(16) };
  const state = {
    format: "llamaforge-trainer",
    version: 1,
    step: 5,
    tokens: 640,
    position: 20,
    skips: [0, 1, 0],
    config: { name: "fuzz", steps: 12 },
  };
  const { path } = await saveCheckpoint(run, 5, {
    files: { "config.json": "{}\n" },
    tensors: { "model.safetensors": [source] },
    trainer: state,
    run: { seed: 5, worldSize: 1 },
  });
  const manifest = join(path, "manifest.json");
  const good = readFileSync(manifest);
  return {
    "manifest.json": {
      seeds: [good],
      run: async (bytes) => {
        writeFileSync(manifest, withCheck(bytes));
        await openCheckpoint(path);
      },
    },
    "trainer.json": {
      seeds: [readFileSync(join(path, "trainer.json"))],
      run: async (bytes) => {
        parseTrainerState(await readJson(file("trainer.json", bytes), 2 ** 26), "trainer.json");
      },
    },
  };
}

/** Gives a manifest a right hash of itself if it is JSON. Else most mutations end at that check. */
function withCheck(bytes) {
  try {
    const { check: _, ...body } = JSON.parse(bytes.toString());
    const check = createHash("sha256").update(JSON.stringify(body)).digest("hex");
    return JSON.stringify({ ...body, check });
  } catch {
    return bytes;
  }
}

async function configTarget(root, library, file) {
  const { loadConfig } = await library("config/index.js");
  const configs = join(root, "configs");
  const seeds = readdirSync(configs)
    .filter((name) => name.endsWith(".yaml"))
    .map((name) => readFileSync(join(configs, name)))
    // Each seed must load as it stands; one that begins with a model needs the model's folder.
    .filter((text) => !/^init:/m.test(text.toString()));
  return {
    "config.yaml": { seeds, run: async (bytes) => void loadConfig(file("config.yaml", bytes)) },
  };
}

async function tokenizerTarget(root, folder, library) {
  const { Tokenizer } = await library("data/tokenizer.js");
  const fixtures = join(root, "test", "data", "fixtures");
  const place = join(folder, "tokenizer");
  mkdirSync(place, { recursive: true });
  return {
    tokenizer: {
      seeds: ["byte-level", "llama2"].map((name) =>
        readFileSync(join(fixtures, name, "tokenizer.json")),
      ),
      run: async (bytes) => {
        writeFileSync(join(place, "tokenizer.json"), bytes);
        const tokenizer = await Tokenizer.load(place);
        const ids = await tokenizer.encode("A test, 1 ü 😀 <s> \u0000");
        await tokenizer.decode(ids);
      },
    },
  };
}

/** Interesting inputs of earlier runs, by target. They run before generated inputs. */
export function corpusOf(root, target) {
  const folder = join(root, "test", "fault", "fuzz", "corpus", target);
  try {
    return readdirSync(folder).map((name) => readFileSync(join(folder, name)));
  } catch {
    return [];
  }
}

/**
 * Runs one input. The limit is processor time, because the machine may be busy.
 * @throws unless the input is accepted, or refused by a typed error in time
 */
export async function expectPromise(target, bytes, limitMs = 5000) {
  const started = process.cpuUsage();
  try {
    await target.run(bytes);
  } catch (error) {
    const typed = typeof error?.exitCode === "number" && [2, 3, 4].includes(error.exitCode);
    if (!typed) throw error;
  }
  if ({}.polluted !== undefined) throw new Error("Object.prototype was changed");
  const { user, system } = process.cpuUsage(started);
  const took = (user + system) / 1000;
  if (took > limitMs) throw new Error(`took ${took.toFixed(0)} ms`);
}
