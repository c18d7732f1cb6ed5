import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, test } from "vitest";
import { buildLibrary, root } from "../cli/build.js";

// Reference cases of another implementation: the one kept here, and those beside the repository when they are there.
const beside = join(root, "../shared/golden");
const cases = [
  join(root, "test/golden/tied"),
  ...(existsSync(beside)
    ? readdirSync(beside, { withFileTypes: true })
        .filter((entry) => entry.isDirectory())
        .map((entry) => join(beside, entry.name))
    : []),
];

type CheckCase = (
  folder: string,
  options: object,
) => Promise<{ passed: boolean; failures: string[]; loss: number }>;
let checkCase: CheckCase;
beforeAll(async () => {
  buildLibrary();
  // @ts-expect-error a script, without types
  ({ checkCase } = (await import("../../scripts/golden.mjs")) as { checkCase: CheckCase });
});

describe.each(cases)("%s", (folder) => {
  test.each(["f32", "bf16"])("in %s within the tolerances", async (dtype) => {
    const result = await checkCase(folder, { dtype });
    expect(result.failures).toEqual([]);
    expect(Number.isFinite(result.loss)).toBe(true);
  });
});
