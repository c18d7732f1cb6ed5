import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { memory } from "../../lib/core/runtime.js";
import { scope } from "../../lib/core/scope.js";
import { Mixture } from "../../lib/data/mixture.js";
import { prepare } from "../../lib/prepare/prepare.js";
import { documents, quickstart, temporaryFolder, writeFiles } from "./support.js";

const sequenceLength = 16;

describe("mixture.next", () => {
  it("gives tensors of inputs and targets, in the caller's scope, and goes on from a position", async () => {
    const folder = await temporaryFolder();
    await writeFiles(join(folder, "in"), documents(40));
    const out = join(folder, "out");
    await prepare({ inputs: [join(folder, "in")], out, tokenizer: quickstart });
    const mixture = await Mixture.open(out, { sequenceLength, seed: 7 });
    const before = memory().tensors;
    const seen: string[] = [];
    for (let step = 0; step < 5; step++) {
      using _ = scope();
      const { inputs, targets } = await mixture.next(4);
      expect(inputs.shape).toEqual([4, sequenceLength]);
      expect([inputs.dtype, targets.dtype]).toEqual(["i32", "i32"]);
      const rows = await mixture.read(step * 4, 4);
      const [x, y] = [await inputs.toArray(), await targets.toArray()];
      for (let row = 0; row < 4; row++) {
        const window = rows.subarray(row * 17, (row + 1) * 17);
        expect(x.subarray(row * 16, (row + 1) * 16)).toEqual(window.subarray(0, 16));
        expect(y.subarray(row * 16, (row + 1) * 16)).toEqual(window.subarray(1));
      }
      seen.push(x.join());
      expect(mixture.position).toBe((step + 1) * 4);
    }
    expect(memory().tensors).toBe(before);

    mixture.position = 8;
    using _ = scope();
    const { inputs } = await mixture.next(4);
    expect((await inputs.toArray()).join()).toBe(seen[2]);
    // A batch of another size continues at the same place.
    const { inputs: two } = await mixture.next(2);
    expect((await two.toArray()).join()).toBe((seen[3] as string).split(",").slice(0, 32).join());
    expect(mixture.position).toBe(14);
    await mixture.close();
  });
});
