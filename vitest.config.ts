import { defineConfig } from "vitest/config";

export default defineConfig({
  // Examples and type tests import the package by its name, as users do.
  resolve: { alias: { llamaforge: new URL("lib/index.ts", import.meta.url).pathname } },
  test: {
    include: ["test/**/*.test.ts"],
    setupFiles: ["test/support/device.ts"],
    reporters: ["default", new URL("test/support/slowest.ts", import.meta.url).pathname],
    // Each file in a process of its own: the native addon, environment variables and signals are per process.
    pool: "forks",
    // The kernels use every core by themselves.
    maxWorkers: 1,
    testTimeout: 60_000,
    hookTimeout: 60_000,
  },
});
