/** The long tests: each file exists, and `npm test` and `npm run test:all` together run every file once. */
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { root } from "../cli/build.js";
import { longTests } from "../support/long.js";

test.each(longTests)("%s exists", (path) => {
  expect(existsSync(join(root, path))).toBe(true);
});

test("the two commands share the files between them, and CI runs both", () => {
  expect(new Set(longTests).size).toBe(longTests.length);
  const { scripts } = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));
  expect(scripts.test).toContain("LLAMAFORGE_TESTS=short vitest run");
  expect(scripts["test:all"]).toContain("LLAMAFORGE_TESTS=long vitest run");
  const ci = readFileSync(join(root, ".ci/run"), "utf8");
  expect(ci).toMatch(/^npm test$/m);
  expect(ci).toMatch(/^npm run test:all$/m);
});
