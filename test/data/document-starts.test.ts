import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { scope } from "../../lib/core/scope.js";
import { Mixture } from "../../lib/data/mixture.js";
import { verifyDataset } from "../../lib/data/verify.js";
import { documentStarts } from "../../lib/data/windows.js";
import { prepare } from "../../lib/prepare/prepare.js";
import { documents, quickstart, temporaryFolder, writeFiles } from "./support.js";

describe("where documents start within their windows", () => {
  it("is behind every end and at every beginning, and 0 for the document the window starts in", () => {
    const starts = (ids: number[], startId: number | null, endId: number | null) => [
      ...documentStarts(Int32Array.from(ids), ids.length - 1, () => ({ startId, endId })),
    ];
    expect(starts([5, 6, 2, 7, 8, 2, 2, 9, 1], null, 2)).toEqual([0, 0, 0, 3, 3, 3, 6, 7]);
    expect(starts([5, 1, 6, 7, 1, 1, 8], 1, null)).toEqual([0, 1, 1, 1, 4, 5]);
    expect(starts([2, 1, 5, 2, 1, 6, 2], 1, 2)).toEqual([0, 1, 1, 1, 4, 4]);
    expect(starts([3, 4, 5, 6], null, null)).toEqual([0, 0, 0]);
  });

  it("agrees with the document index of the shards", async () => {
    const folder = await temporaryFolder();
    await writeFiles(join(folder, "in"), { ...documents(40, 7), "x.txt": "</s> is text </s></s>" });
    const out = join(folder, "out");
    const inputs = [join(folder, "in")];
    await prepare({ inputs, out, tokenizer: quickstart, shardTokens: 300, validationFraction: 0 });
    const { splits } = await verifyDataset(out);
    const first = new Set<number>();
    let before = 0;
    for (const { file, tokens } of splits.train.shards) {
      const index = await readFile(join(out, file.replace(".bin", ".idx")));
      for (let at = 0; at < index.length; at += 8)
        first.add(before + Number(index.readBigUInt64LE(at)));
      before += tokens;
    }
    expect(first.size).toBe(42);

    const sequenceLength = 50;
    const mixture = await Mixture.open(out, {
      sequenceLength,
      maskDocuments: true,
      resetPositions: true,
    });
    const loader = mixture.loader(1, 0);
    for (let position = 0; position < mixture.windows; position++) {
      const { firstKey, positions } = await loader.next();
      const from = mixture.locate(position).window * sequenceLength;
      let start = 0;
      const expected = Array.from({ length: sequenceLength }, (_, t) => {
        if (first.has(from + t)) start = t;
        return start;
      });
      expect([...(firstKey as Int32Array)]).toEqual(expected);
      expect([...(positions as Int32Array)]).toEqual(expected.map((first, t) => t - first));
    }
    await loader.close();

    using _ = scope();
    const batch = await mixture.next(3);
    for (const ids of [batch.firstKey, batch.positions]) {
      expect(ids?.shape).toEqual([3, sequenceLength]);
      expect(ids?.dtype).toBe("i32");
    }
    await mixture.close();
    const plain = await Mixture.open(out, { sequenceLength });
    expect(Object.keys(await plain.next(3))).toEqual(["inputs", "targets"]);
    await plain.close();
  });
});
