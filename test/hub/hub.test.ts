/** Models of the Hub, fetched from and pushed to a server that speaks its endpoints. */
import { spawnSync } from "node:child_process";
import { mkdtemp, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { loadModel, saveModel } from "../../lib/checkpoint/model.js";
import { loadConfig, readConfig } from "../../lib/config/index.js";
import { CheckpointError, UsageError } from "../../lib/core/errors.js";
import { Tokenizer } from "../../lib/data/tokenizer.js";
import { cachedModel, downloadModel } from "../../lib/hub/download-model.js";
import { pushModel } from "../../lib/hub/push-model.js";
import { parseHubReference } from "../../lib/hub/reference.js";
import { Llama } from "../../lib/model/llama.js";
import { llamaConfig } from "../../lib/model/llama-config.js";
import { buildLibrary } from "../cli/build.js";
import { commitOf, type HubServer, hubServer } from "./server.js";

const name = "someone/tiny-llama";
const reference = `hf:${name}`;
let folder: string;
let source: string;
let files: Map<string, Buffer>;
let server: HubServer;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "llamaforge-hub-"));
  source = join(folder, "source");
  const tokenizer = await Tokenizer.load("assets/quickstart");
  const shape = { hiddenSize: 32, intermediateSize: 48, layers: 2, heads: 2, kvHeads: 1 };
  const model = await Llama.create(
    llamaConfig({
      vocabSize: tokenizer.vocabSize,
      ...shape,
      contextLength: 64,
      ropeTheta: 10_000,
      rmsNormEps: 1e-5,
      tieEmbeddings: true,
    }),
    { seed: 1 },
  );
  await saveModel(source, model, { tokenizer });
  model.dispose();
  files = new Map();
  for (const path of (await readdir(source)).sort()) {
    if (path !== "manifest.json") files.set(path, await readFile(join(source, path)));
  }
});
afterAll(() => rm(folder, { recursive: true, force: true }));

const environment = { ...process.env };
beforeEach(async () => {
  server = await hubServer();
  const others = { "pytorch_model.bin": Buffer.from("pickle"), "README.md": Buffer.from("# tiny") };
  const all = new Map([...files, ...Object.entries(others)]);
  server.models.set(name, { files: all, commit: commitOf(all) });
  process.env.HF_ENDPOINT = server.url;
  process.env.HF_HUB_CACHE = await mkdtemp(join(folder, "cache-"));
  for (const one of ["HF_TOKEN", "HF_HOME", "HF_HUB_OFFLINE"]) delete process.env[one];
});
afterEach(async () => {
  process.env = { ...environment };
  await server.close();
});

const weights = () => files.get("model.safetensors") as Buffer;
const cache = (...path: string[]) =>
  join(process.env.HF_HUB_CACHE as string, "models--someone--tiny-llama", ...path);
/** Compares whole files; `toEqual` would look at every byte by itself. */
const expectBytes = async (path: string, bytes: Buffer) => {
  expect((await readFile(path)).equals(bytes), path).toBe(true);
};
/** Requests for the weights' bytes, without the one that asks for their size. */
const reads = () =>
  server.requests.filter((one) => one.startsWith("GET /cdn/") && !one.endsWith("bytes=0-0"));

describe("downloadModel", () => {
  test("fetches what a model needs and no more, and it loads", async () => {
    const seen: number[] = [];
    const place = await downloadModel(reference, { onProgress: ({ bytes }) => seen.push(bytes) });
    expect((await readdir(place)).sort()).toEqual([...files.keys()].sort());
    for (const [path, bytes] of files) await expectBytes(join(place, path), bytes);
    expect(seen.at(-1)).toBe([...files.values()].reduce((sum, { length }) => sum + length, 0));
    const model = await loadModel(place);
    model.dispose();
    expect((await Tokenizer.load(place)).vocabSize).toBe(4096);
    expect(server.requests.join("\n")).not.toMatch(/pytorch_model|README/);
  });

  test("lies in the Hub's own cache, from which it is taken without the network", async () => {
    await expect(cachedModel(reference)).rejects.toThrow(/not in the cache .*download fetches it/);
    const place = await downloadModel(reference);
    const { commit } = server.models.get(name) as { commit: string };
    expect(place).toBe(cache("snapshots", commit));
    expect(await readFile(cache("refs", "main"), "utf8")).toBe(commit);
    await server.close();
    expect(await cachedModel(reference)).toBe(place);
    expect(await cachedModel(`${reference}@${commit}`)).toBe(place);
    await rm(join(place, "model.safetensors"));
    await expect(cachedModel(reference)).rejects.toThrow(/lacks model.safetensors; download/);
  });

  test("asks for no bytes that are there, and gets those of a new commit alone", async () => {
    await downloadModel(reference);
    server.requests.length = 0;
    await downloadModel(reference);
    expect(reads()).toEqual([]);
    const model = server.models.get(name) as { files: Map<string, Buffer>; commit: string };
    model.files.set("generation_config.json", Buffer.from('{"eos_token_id":[2,3]}'));
    model.commit = commitOf(model.files);
    const place = await downloadModel(reference);
    expect(place).toContain(model.commit);
    expect(await readFile(join(place, "generation_config.json"), "utf8")).toContain("[2,3]");
    expect(reads()).toEqual([]);
  });

  test("stands in a recipe as init.from, whose model gives the shape", async () => {
    const recipe = join(folder, "recipe.yaml");
    const text = `steps: 9\ndata: {train: {a: 1}}\ninit: {from: ${reference}}\n`;
    await writeFile(recipe, text);
    await expect(readConfig(recipe)).rejects.toThrow(/not in the cache/);
    expect(() => loadConfig(recipe)).toThrow(/init.from: expected a folder, such as downloadModel/);
    const place = await downloadModel(reference);
    const config = await readConfig(recipe);
    expect(config.init.from).toBe(place);
    expect(config.model).toMatchObject({ hiddenSize: 32, layers: 2 });
    const other = await readConfig(recipe, ["init.from=hf:some/other"], async () => source);
    expect(other.init.from).toBe(source);
  });

  test("fetches the tokenizer alone", async () => {
    const place = await downloadModel(reference, { parts: "tokenizer" });
    expect((await readdir(place)).sort()).toEqual(["tokenizer.json", "tokenizer_config.json"]);
    expect(await cachedModel(reference, "tokenizer")).toBe(place);
    await expect(cachedModel(reference)).rejects.toThrow(/lacks config.json/);
  });

  test("fetches the shards that the index names", async () => {
    const model = server.models.get(name) as { files: Map<string, Buffer> };
    const part = "model-00001-of-00001.safetensors";
    const index = JSON.stringify({ weight_map: { "model.norm.weight": part } });
    model.files.delete("model.safetensors");
    model.files.set(part, weights());
    model.files.set("model.safetensors.index.json", Buffer.from(index));
    model.files.set("consolidated.safetensors", Buffer.alloc(1000));
    const place = await downloadModel(reference);
    expect(await readdir(place)).toContain(part);
    expect(await readdir(place)).not.toContain("consolidated.safetensors");
  });
});

describe("a broken connection", () => {
  test("is taken up where it broke, again and again", async () => {
    const { length } = weights();
    server.faults.push(
      { cutAfter: 1000 },
      { cutAfter: 500 },
      { status: 503 },
      { cutAfter: 70_000 },
    );
    const place = await downloadModel(reference);
    await expectBytes(join(place, "model.safetensors"), weights());
    const ranges = reads().map((one) => Number(/bytes=(\d+)-/.exec(one)?.[1] ?? 0));
    expect(ranges).toEqual([0, 1000, 1500, 1500, 71_500]);
    expect(length).toBeGreaterThan(71_500);
  }, 30_000);

  test("that stays broken ends the call, and the next call goes on", async () => {
    server.faults.push({ cutAfter: 40_000 });
    for (let more = 0; more < 4; more++) server.faults.push({ cutAfter: 0 });
    const failed = downloadModel(reference);
    await expect(failed).rejects.toThrow(/cannot reach http.*The same command goes on/);
    await expect(failed).rejects.toThrow(CheckpointError);
    const [partial] = (await readdir(cache("blobs"))).filter((one) => one.endsWith(".incomplete"));
    expect((await stat(cache("blobs", partial as string))).size).toBe(40_000);
    await expect(cachedModel(reference)).rejects.toThrow(/not in the cache/);
    server.requests.length = 0;
    const place = await downloadModel(reference);
    expect(reads()).toEqual([expect.stringContaining("bytes=40000-")]);
    await expectBytes(join(place, "model.safetensors"), weights());
  }, 60_000);

  test("may be the end of the process, whose bytes the next one uses", async () => {
    server.faults.push({ cutAfter: 30_000 });
    const abort = new AbortController();
    const started = downloadModel(reference, {
      signal: abort.signal,
      onProgress: ({ file }) => {
        if (file === "model.safetensors") abort.abort(new Error("killed"));
      },
    });
    await expect(started).rejects.toThrow("killed");
    server.faults.length = 0;
    const place = await downloadModel(reference);
    await expectBytes(join(place, "model.safetensors"), weights());
  });
});

describe("damaged bytes", () => {
  test("are fetched once more", async () => {
    server.faults.push({ damageAt: 50_000 });
    const place = await downloadModel(reference);
    await expectBytes(join(place, "model.safetensors"), weights());
    expect(reads()).toHaveLength(2);
  });

  test("that come twice are an error, and no model is there", async () => {
    server.faults.push({ damageAt: 50_000 }, { damageAt: 7 });
    const failed = downloadModel(reference);
    await expect(failed).rejects.toThrow(/model.safetensors: its SHA-256 is .*damaged.*twice/);
    await expect(failed).rejects.toThrow(CheckpointError);
    await expect(cachedModel(reference)).rejects.toThrow(/not in the cache/);
    expect((await readdir(cache("blobs"))).filter((one) => one.endsWith(".incomplete"))).toEqual(
      [],
    );
  });

  test("of an earlier, partial download are noticed too", async () => {
    server.faults.push({ cutAfter: 40_000 });
    for (let more = 0; more < 4; more++) server.faults.push({ cutAfter: 0 });
    await expect(downloadModel(reference)).rejects.toThrow(/cannot reach/);
    const [partial] = (await readdir(cache("blobs"))).filter((one) => one.endsWith(".incomplete"));
    await writeFile(cache("blobs", partial as string), Buffer.alloc(40_000));
    const place = await downloadModel(reference);
    await expectBytes(join(place, "model.safetensors"), weights());
  }, 60_000);
});

describe("a model that cannot be had", () => {
  test.each([
    [404, "Repository not found", /has no such model or no revision main.*Repository not found/],
    [
      401,
      "Access is restricted",
      /refuses it \(401\).*license must be accepted.*HF_TOKEN holds no/,
    ],
    [403, "gated: ask for access", /refuses it \(403\).*gated: ask for access/],
  ])("%i is explained", async (status, error, message) => {
    const model = server.models.get(name) as { refusal?: object };
    model.refusal = { status, error };
    const failed = downloadModel(reference);
    await expect(failed).rejects.toThrow(message);
    await expect(failed).rejects.toThrow(UsageError);
  });

  test("an unknown name or revision is explained", async () => {
    await expect(downloadModel("hf:no/body")).rejects.toThrow(/no such model/);
    await expect(downloadModel(`${reference}@v9`)).rejects.toThrow(/no revision v9/);
  });

  test("a Hub that does not answer is explained, and so is HF_HUB_OFFLINE", async () => {
    const free = createServer().listen(0);
    const { port } = free.address() as { port: number };
    await new Promise((resolve) => free.close(resolve));
    process.env.HF_ENDPOINT = `http://127.0.0.1:${port}`;
    const failed = downloadModel(reference);
    await expect(failed).rejects.toThrow(/cannot reach http:.*ECONNREFUSED/);
    await expect(failed).rejects.toThrow(CheckpointError);
    process.env.HF_HUB_OFFLINE = "1";
    await expect(downloadModel(reference)).rejects.toThrow(/HF_HUB_OFFLINE is set/);
  });

  test("weights that are pickles alone, or none, are refused before a byte is fetched", async () => {
    const model = server.models.get(name) as { files: Map<string, Buffer> };
    model.files.delete("model.safetensors");
    await expect(downloadModel(reference)).rejects.toThrow(
      /in pytorch_model.bin alone.*Convert it/,
    );
    model.files.delete("pytorch_model.bin");
    await expect(downloadModel(reference)).rejects.toThrow(/no model.safetensors/);
    model.files.delete("tokenizer.json");
    const ofTokenizer = downloadModel(reference, { parts: "tokenizer" });
    await expect(ofTokenizer).rejects.toThrow(/no tokenizer.json/);
  });

  test("a token that cannot be one is refused", async () => {
    process.env.HF_TOKEN = "secret";
    await expect(downloadModel(reference)).rejects.toThrow(/HF_TOKEN: expected a token/);
  });

  test.each(["hf:", "hf:one", "hf:a/b/c", "hf:a/../b", "hf:a/b@", "hf:a/b@../c", "hf:a b/c"])(
    "%s is no reference",
    (written) => {
      expect(() => parseHubReference(written)).toThrow(/expected hf:OWNER\/NAME/);
    },
  );

  test("without the package, the error says how to install it", async () => {
    await buildLibrary();
    const hook =
      "export async function resolve(name, context, next) { if (name.startsWith('@huggingface/hub'))" +
      " throw new Error('not installed'); return next(name, context); }";
    const program =
      `import { register } from "node:module"; register(${JSON.stringify(`data:text/javascript,${encodeURIComponent(hook)}`)});` +
      `const { downloadModel } = await import(${JSON.stringify(new URL("../../dist/hub/download-model.js", import.meta.url).href)});` +
      `await downloadModel("hf:a/b").catch((error) => console.log(error.code, error.message));`;
    const { stdout } = spawnSync(process.execPath, ["--input-type=module", "-e", program], {
      encoding: "utf8",
    });
    expect(stdout).toContain(
      "ERR_USAGE [downloadModel] needs the package @huggingface/hub: install it with npm install",
    );
  });
});

describe("pushModel", () => {
  const target = "hf:someone/mine";
  const pushed = () => server.models.get("someone/mine") as { files: Map<string, Buffer> };

  test("makes a repository, uploads what a model needs, and it comes back equal", async () => {
    process.env.HF_TOKEN = "hf_writer";
    await writeFile(join(source, "optimizer.safetensors"), "only training needs it");
    const { url, sent, removed } = await pushModel(source, target);
    await rm(join(source, "optimizer.safetensors"));
    expect(url).toBe(`${server.url}/someone/mine`);
    expect([sent.sort(), removed]).toEqual([[...files.keys()].sort(), []]);
    expect([...pushed().files.keys()].sort()).toEqual([...files.keys()].sort());
    for (const [path, bytes] of files) expect(pushed().files.get(path)?.equals(bytes)).toBe(true);
    const place = await downloadModel(target);
    for (const [path, bytes] of files) await expectBytes(join(place, path), bytes);
  });

  test("sends what the Hub lacks, and removes weights of an earlier form", async () => {
    process.env.HF_TOKEN = "hf_writer";
    await pushModel(source, target);
    server.requests.length = 0;
    expect(await pushModel(source, target)).toMatchObject({ sent: [], removed: [] });
    expect(server.requests.every((one) => one.startsWith("GET"))).toBe(true);
    pushed().files.set("config.json", Buffer.from("{}"));
    pushed().files.set("model-00001-of-00002.safetensors", Buffer.from("old"));
    pushed().files.set("model.safetensors.index.json", Buffer.from("{}"));
    pushed().files.set("notes.txt", Buffer.from("theirs"));
    const again = await pushModel(source, target);
    expect(again.sent).toEqual(["config.json"]);
    expect(again.removed.sort()).toEqual([
      "model-00001-of-00002.safetensors",
      "model.safetensors.index.json",
    ]);
    expect(pushed().files.get("config.json")).toEqual(files.get("config.json"));
    expect(pushed().files.has("notes.txt")).toBe(true);
  });

  test("needs a token that the Hub takes", async () => {
    await expect(pushModel(source, target)).rejects.toThrow(
      /needs a token that may write: set HF_/,
    );
    process.env.HF_TOKEN = "hf_reader";
    const failed = pushModel(source, target);
    await expect(failed).rejects.toThrow(/refuses it \(401\).*HF_TOKEN does not open it/);
    await expect(failed).rejects.toThrow(UsageError);
  });

  test("refuses a folder without a model", async () => {
    process.env.HF_TOKEN = "hf_writer";
    const empty = await mkdtemp(join(folder, "empty-"));
    await expect(pushModel(empty, target)).rejects.toThrow(/has no model.safetensors/);
    await expect(pushModel(join(empty, "no"), target)).rejects.toThrow(/cannot read/);
    expect(server.requests).toEqual([]);
  });
});
