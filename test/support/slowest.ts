import { relative } from "node:path";
import type { Reporter, TestModule } from "vitest/node";

/** Prints the files that took longest, as it is they that decide how long a run takes. */
export default class Slowest implements Reporter {
  onTestRunEnd(modules: readonly TestModule[]): void {
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
