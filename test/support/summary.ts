import { relative } from "node:path";
import type { Reporter, TestModule } from "vitest/node";

/**
 * Prints the tests that passed only when they were repeated, and the files that took longest. A
 * test of the first kind has a race, in itself or in the library, and is to be mended.
 */
export default class Summary implements Reporter {
  onTestRunEnd(modules: readonly TestModule[]): void {
    const flaky = modules.flatMap((module) =>
      [...module.children.allTests()]
        .filter((test) => test.diagnostic()?.flaky)
        .map((test) => `${relative(process.cwd(), module.moduleId)} > ${test.fullName}`),
    );
    if (flaky.length > 0) {
      console.log(` Passed only when repeated: ${flaky.length}`);
      for (const name of flaky) console.log(`  ${name}`);
    }
    const files = modules
      .map((module) => {
        const { collectDuration, duration } = module.diagnostic();
        const name = relative(process.cwd(), module.moduleId);
        return { name, seconds: (collectDuration + duration) / 1000 };
      })
      .sort((a, b) => b.seconds - a.seconds);
    if (files.length < 2) return;
    console.log(" Slowest files");
    for (const { name, seconds } of files.slice(0, 10)) {
      console.log(`  ${seconds.toFixed(1).padStart(6)} s  ${name}`);
    }
  }
}
