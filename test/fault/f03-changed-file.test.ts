// docs/faults.md, row F3: a file replaced, truncated or removed while it is open is an error. Files
// are not mapped, so there is no SIGBUS.
import { execFileSync } from "node:child_process";
import { rmSync, truncateSync } from "node:fs";
import { truncate } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { readSafetensors, writeSafetensors } from "../../lib/checkpoint/safetensors.js";
import { CheckpointError } from "../../lib/core/errors.js";
import { addon } from "../../lib/core/native.js";
import { TokenDataset } from "../../lib/data/shards.js";
import { prepare } from "../../lib/prepare/prepare.js";
import { temporaryFolder } from "../checkpoint/support/harness.js";
import {
  documents,
  quickstart,
  temporaryFolder as temporaryDataFolder,
  writeFiles,
} from "../data/support.js";

let folder: ReturnType<typeof temporaryFolder>;
beforeEach(() => {
  folder = temporaryFolder();
});
afterEach(() => folder.remove());

describe("a file that changes after its header was read is an error:", () => {
  const changes: [string, (path: string) => void][] = [
    ["truncated", (path) => truncateSync(path, 200_000)],
    ["emptied", (path) => truncateSync(path, 0)],
    [
      "replaced by another of the same size",
      (path) => {
        execFileSync("cp", [path, `${path}.new`]);
        execFileSync("mv", [`${path}.new`, path]);
      },
    ],
    ["removed", (path) => rmSync(path)],
  ];
  test.each(changes)("%s", async (_what, change) => {
    const path = join(folder.path, "file.safetensors");
    const bytes = new Uint8Array(4_000_000);
    await writeSafetensors(path, [
      { name: "a", dtype: "F32", shape: [1000, 1000], bytes: () => bytes },
    ]);
    const a = (await readSafetensors(path)).tensors.get("a");
    change(path);
    await expect(a?.readBytes()).rejects.toBeInstanceOf(CheckpointError);
    const tensorHandle = new addon.NativeTensor(0, "f32", [1000, 1000]);
    a?.readInto(tensorHandle);
    await expect(addon.synchronize(0)).rejects.toThrow(/readTensor.*(replaced|ENOENT)/);
    tensorHandle.dispose();
  });
});

test("a shard that is cut short while a run reads it", async () => {
  const place = await temporaryDataFolder();
  await writeFiles(join(place, "in"), documents(30));
  const folder = join(place, "out");
  await prepare({ inputs: [join(place, "in")], out: folder, tokenizer: quickstart });
  const opened = await TokenDataset.open(folder, { sequenceLength: 16 });
  await opened.read(0, new Int32Array(17));
  await truncate(join(folder, "train-00000.bin"), 20);
  await expect(opened.read(0, new Int32Array(17))).rejects.toThrow(
    /train-00000\.bin ends at byte 20: it was cut short/,
  );
  await opened.close();
});
