import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, test } from "vitest";
import { buildLibrary, root } from "../cli/build.js";

// Reference cases of another implementation: those in this folder, and those beside the repository
// if present.
const cases = ["test/golden", "../shared/golden", "../shared/families"]
  .map((place) => join(root, place))
  .filter((place) => existsSync(place))
  .flatMap((place) =>
    readdirSync(place, { withFileTypes: true })
      .filter((entry) => entry.isDirectory())
      .map((entry) => join(place, entry.name)),
  );

type CheckCase = (
  folder: string,
  options: object,
) => Promise<{ passed: boolean; failures: string[]; loss: number }>;
type Worst = (
  ours: ReadonlyMap<string, Float32Array>,
  reference: ReadonlyMap<string, { values: Float32Array }>,
) => { error: number; name: string };
let checkCase: CheckCase;
let worst: Worst;
beforeAll(async () => {
  buildLibrary();
  // @ts-expect-error a script, without types
  ({ checkCase, worst } = (await import("../../scripts/golden.mjs")) as {
    checkCase: CheckCase;
    worst: Worst;
  });
});

describe.each(cases)("%s", (folder) => {
  test.each(["f32", "bf16"])("in %s within the tolerances", async (dtype) => {
    const result = await checkCase(folder, { dtype });
    expect(result.failures).toEqual([]);
    expect(Number.isFinite(result.loss)).toBe(true);
  });
});

test("a value that is not finite is the worst of all, wherever it stands", () => {
  const good = Float32Array.of(1, 2);
  const bad = Float32Array.of(1, Number.NaN);
  const reference = new Map(["a", "b", "c"].map((name) => [name, { values: good }]));
  for (const at of reference.keys()) {
    const ours = new Map([...reference.keys()].map((name) => [name, name === at ? bad : good]));
    expect(worst(ours, reference)).toEqual({ error: Number.NaN, name: at });
  }
});
