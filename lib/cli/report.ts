import type { Command } from "commander";
import { printResult } from "./terminal.js";

export function addReport(program: Command): void {
  program
    .command("report")
    .description("the charts of a run as one HTML file")
    .argument("<run>", "folder of the run")
    .option("--out <file>", "where to write it (default: report.html in the run's folder)")
    .action(async (run: string, options: { out?: string }) => {
      const { writeReport } = await import("../report/html.js");
      printResult(`${await writeReport(run, options.out)}\n`);
    });
}
