import type { Command } from "commander";
import { loadConfig } from "../train/config.js";
import { planRun } from "../train/plan.js";
import { formatPlan } from "../train/plan-text.js";
import { integerOption, numberOption, setOption } from "./options.js";

interface PlanCommandOptions {
  set: string[];
  tflops?: number;
  tokensPerSecond?: number;
  devices?: number;
  json?: true;
}

export function addPlan(program: Command): void {
  program
    .command("plan")
    .description("what a run takes, before it starts: parameters, memory, FLOPs, time")
    .argument("<config>", "YAML configuration of the run")
    .addOption(setOption())
    .addOption(
      numberOption("--tflops <n>", "achieved TFLOP/s of one device", { above: 0, max: 1e6 }),
    )
    .addOption(
      numberOption("--tokens-per-second <n>", "measured tokens/s of one device", {
        above: 0,
        max: 1e12,
      }),
    )
    .addOption(integerOption("--devices <n>", "devices that share the work", 1, 1_000_000))
    .option("--json", "print the plan as JSON")
    .action((file: string, options: PlanCommandOptions) => {
      const { set, json, ...speed } = options;
      const config = loadConfig(file, set);
      const plan = planRun(config, speed);
      process.stdout.write(json ? `${JSON.stringify(plan, null, 2)}\n` : formatPlan(config, plan));
    });
}
