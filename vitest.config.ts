import { configDefaults, defineConfig } from "vitest/config";
import { longTests } from "./test/support/long.js";

// LLAMAFORGE_TESTS=short leaves the long files out (npm test), long runs them alone (npm run test:all); else all.
const { LLAMAFORGE_TESTS: chosen = "all" } = process.env;
if (!["short", "long", "all"].includes(chosen)) {
  throw new Error(`LLAMAFORGE_TESTS: expected short, long or all, got ${chosen}`);
}

export default defineConfig({
  // Examples and type tests import the package by its name, as users do.
  resolve: { alias: { llamaforge: new URL("lib/index.ts", import.meta.url).pathname } },
  test: {
    include: chosen === "long" ? [...longTests] : ["test/**/*.test.ts"],
    exclude: [...configDefaults.exclude, ...(chosen === "short" ? longTests : [])],
    setupFiles: ["test/support/device.ts"],
    reporters: ["default", new URL("test/support/summary.ts", import.meta.url).pathname],
    // Each file in a process of its own: the native addon, environment variables and signals are per process.
    pool: "forks",
    // The kernels use every core by themselves.
    maxWorkers: 1,
    // CI repeats a failed test once, so that one race does not hide the results of 4,000 others. The
    // summary names each test that passed only when repeated.
    retry: process.env.CI ? 1 : 0,
    testTimeout: 60_000,
    hookTimeout: 60_000,
  },
});
