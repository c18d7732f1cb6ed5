import type { Command } from "commander";
import { printResult } from "./terminal.js";

export function addReport(program: Command): void {
  program
    .command("report")
    .description("the charts of a run as one HTML file; of several runs, beside each other")
    .argument("<runs...>", "folder of the run, or of up to eight runs to compare")
    .option(
      "--out <file>",
      "where to write it (default: report.html in the run's folder; comparison.html here)",
    )
    .action(async (runs: string[], { out }: { out?: string }) => {
      const [run = "", ...others] = runs;
      if (others.length > 0) {
        const { writeComparison } = await import("../report/compare.js");
        printResult(`${await writeComparison(runs, out ?? "comparison.html")}\n`);
        return;
      }
      const { writeReport } = await import("../report/html.js");
      printResult(`${await writeReport(run, out)}\n`);
    });
}
