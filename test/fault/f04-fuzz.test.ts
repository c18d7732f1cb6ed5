// docs/faults.md, rows F4, D1, K1 and T1: no change to a file makes its parser break its promise.
// `npm run fuzz` does this for minutes. Here the inputs are the same in every run, so a failure
// comes from the code.
import { mkdtempSync, rmSync } from "node:fs";
import fc from "fast-check";
import { afterAll, beforeAll, expect, test } from "vitest";
import { buildLibrary, root } from "../cli/build.js";
import { apply, edits } from "./fuzz/mutations.mjs";
import { corpusOf, expectPromise, makeTargets, type Target } from "./fuzz/targets.mjs";

const scratch = mkdtempSync("/dev/shm/llamaforge-fuzz-");
let targets: Record<string, Target>;
beforeAll(async () => {
  buildLibrary();
  targets = await makeTargets(root, scratch);
});
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

test.each([
  "token-shard",
  "document-index",
  "dataset.json",
  "manifest.json",
  "trainer.json",
  "config.yaml",
  "tokenizer",
])("%s", async (name) => {
  const target = targets[name] as Target;
  const files = [...target.seeds, ...corpusOf(root, name)];
  for (const seed of target.seeds) await target.run(seed); // valid files are accepted
  for (const file of files) await expectPromise(target, file);
  let refused = 0;
  await fc.assert(
    fc.asyncProperty(fc.nat(files.length - 1), edits, async (index, list) => {
      const bytes = apply(files[index] as Buffer, list);
      await expectPromise(target, bytes);
      await target.run(bytes).catch(() => refused++);
    }),
    { numRuns: 100, seed: 20 },
  );
  expect(refused).toBeGreaterThan(20);
});
