// docs/faults.md, row F2: an index or a link must not lead out of the folder.

import { execFileSync } from "node:child_process";
import { mkdirSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import {
  readSafetensors,
  type TensorSource,
  writeSafetensors,
} from "../../lib/checkpoint/safetensors.js";
import { readWeights, writeWeights } from "../../lib/checkpoint/weights.js";
import { CheckpointError } from "../../lib/core/errors.js";
import { temporaryFolder } from "../checkpoint/support/harness.js";

let folder: ReturnType<typeof temporaryFolder>;
beforeEach(() => {
  folder = temporaryFolder();
});
afterEach(() => folder.remove());

function tensor(name: string, size = 4): TensorSource {
  return { name, dtype: "U8", shape: [size], bytes: () => new Uint8Array(size).fill(name.length) };
}

function writeIndex(content: unknown): void {
  const text = typeof content === "string" ? content : JSON.stringify(content);
  writeFileSync(join(folder.path, "model.safetensors.index.json"), text);
}

async function twoShards(): Promise<void> {
  await writeSafetensors(join(folder.path, "one.safetensors"), [tensor("a"), tensor("b")]);
  await writeSafetensors(join(folder.path, "two.safetensors"), [tensor("c")]);
}

const rightMap = { a: "one.safetensors", b: "one.safetensors", c: "two.safetensors" };

async function refusal(): Promise<string> {
  const error = await readWeights(folder.path).then(
    () => null,
    (thrown: unknown) => thrown,
  );
  expect(error).toBeInstanceOf(CheckpointError);
  return (error as Error).message;
}

test("shards with a right index are read as one", async () => {
  await twoShards();
  writeIndex({ metadata: { total_size: 12 }, weight_map: rightMap });
  const { tensors } = await readWeights(folder.path);
  expect([...tensors.keys()].sort()).toEqual(["a", "b", "c"]);
  expect([...((await tensors.get("c")?.readBytes()) ?? [])]).toEqual([1, 1, 1, 1]);
});

describe("an index is refused when", () => {
  test.each([
    ["../two.safetensors", /not a plain file name/],
    ["../../../../etc/passwd", /not a plain file name/],
    ["/etc/passwd", /not a plain file name/],
    ["sub/two.safetensors", /not a plain file name/],
    ["sub\\two.safetensors", /not a plain file name/],
    ["C:two.safetensors", /not a plain file name/],
    ["two.safetensors\0.txt", /not a plain file name/],
    ["", /not a plain file name/],
    [".", /not a plain file name/],
    [".hidden.safetensors", /not a plain file name/],
    [`${"x".repeat(300)}.safetensors`, /not a plain file name/],
    ["two.bin", /not a \.safetensors file/],
    ["three.safetensors", /three\.safetensors: no such file/],
    [7, /is not a string/],
    [null, /is not a string/],
  ])("it names %j", async (name, message) => {
    await twoShards();
    writeIndex({ weight_map: { ...rightMap, c: name } });
    expect(await refusal()).toMatch(message);
  });

  test.each([
    ["it is no JSON", "{", /not valid JSON/],
    ["it is no UTF-8", Buffer.from([0x7b, 0xff, 0x7d]).toString("latin1"), /not valid JSON/],
    ["it is a list", "[]", /weight_map/],
    ["it is null", "null", /weight_map/],
    ["it has no weight_map", "{}", /weight_map/],
    ["its weight_map is a list", '{"weight_map":[]}', /weight_map/],
    ["its weight_map is empty", '{"weight_map":{}}', /is empty/],
    ["it is deeply nested", "[".repeat(1_000_000), /not valid JSON/],
  ])("%s", async (_what, text, message) => {
    await twoShards();
    writeIndex(text);
    expect(await refusal()).toMatch(message);
  });

  test("a tensor is in a file but not in the map", async () => {
    await twoShards();
    writeIndex({ weight_map: { a: "one.safetensors", c: "two.safetensors" } });
    expect(await refusal()).toMatch(/tensor b of one\.safetensors is missing from weight_map/);
  });

  test("a tensor is in the map but not in its file", async () => {
    await twoShards();
    writeIndex({ weight_map: { ...rightMap, d: "two.safetensors" } });
    expect(await refusal()).toMatch(/1 tensors of weight_map are not in their files:\n {2}d \(two/);
  });

  test("a tensor is in two files", async () => {
    await twoShards();
    await writeSafetensors(join(folder.path, "three.safetensors"), [tensor("a"), tensor("d")]);
    writeIndex({ weight_map: { ...rightMap, d: "three.safetensors" } });
    expect(await refusal()).toMatch(/tensor a is in three\.safetensors, but mapped to one/);
  });

  test("one name is mapped twice, to two files that have it", async () => {
    await twoShards();
    await writeSafetensors(join(folder.path, "three.safetensors"), [tensor("a"), tensor("d")]);
    const pairs = Object.entries({ ...rightMap, d: "three.safetensors" }).map(
      ([name, file]) => `"${name}":"${file}"`,
    );
    writeIndex(`{"weight_map":{${pairs.join(",")},"a":"three.safetensors"}}`);
    expect(await refusal()).toMatch(/tensor a is in one\.safetensors, but mapped to three/);
  });

  test("there is a single file as well", async () => {
    await twoShards();
    writeIndex({ weight_map: rightMap });
    await writeSafetensors(join(folder.path, "model.safetensors"), [tensor("a")]);
    expect(await refusal()).toMatch(/which one is meant/);
  });

  test("a shard is a link, a folder, a pipe or a device", async () => {
    await twoShards();
    mkdirSync(join(folder.path, "folder.safetensors"));
    symlinkSync("two.safetensors", join(folder.path, "link.safetensors"));
    symlinkSync("cycle.safetensors", join(folder.path, "cycle.safetensors"));
    symlinkSync("/dev/zero", join(folder.path, "device.safetensors"));
    execFileSync("mkfifo", [join(folder.path, "pipe.safetensors")]);
    for (const [name, message] of [
      ["link", /symbolic link/],
      ["cycle", /symbolic link/],
      ["device", /symbolic link/],
      ["folder", /not a regular file/],
      ["pipe", /not a regular file/],
    ] as const) {
      writeIndex({ weight_map: { ...rightMap, c: `${name}.safetensors` } });
      expect(await refusal()).toMatch(message);
    }
    await expect(readSafetensors("/dev/zero")).rejects.toThrow(/not a regular file/);
  });

  test("it is itself a link", async () => {
    await twoShards();
    writeFileSync(join(folder.path, "other.json"), JSON.stringify({ weight_map: rightMap }));
    symlinkSync("other.json", join(folder.path, "model.safetensors.index.json"));
    expect(await refusal()).toMatch(/symbolic link/);
  });
});

test("a link is followed when asked, as in a hub's cache", async () => {
  await writeSafetensors(join(folder.path, "blob"), [tensor("a")]);
  symlinkSync("blob", join(folder.path, "model.safetensors"));
  await expect(readWeights(folder.path)).rejects.toThrow(/symbolic link/);
  const { tensors } = await readWeights(folder.path, { followLinks: true });
  expect((await tensors.get("a")?.readBytes())?.length).toBe(4);
});

test("written shards are read back, whatever the shard size", async () => {
  const sources = Array.from({ length: 7 }, (_, i) => tensor(`t${i}`, 10 * (i + 1)));
  for (const shardBytes of [1, 60, 100, 279, 280]) {
    const place = temporaryFolder();
    const digests = await writeWeights(place.path, sources, { shardBytes });
    const shards = [...digests.keys()].filter((name) => name.endsWith(".safetensors"));
    expect(shards.length === 1).toBe(shardBytes >= 280);
    const { tensors, metadata } = await readWeights(place.path);
    expect([...tensors.keys()]).toEqual(sources.map(({ name }) => name));
    expect([...metadata]).toEqual([["format", "pt"]]);
    place.remove();
  }
});
