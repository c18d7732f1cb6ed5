import type { Command } from "commander";
import { readConfig } from "../config/index.js";
import type { MachineOptions } from "../plan/scaling.js";
import { addDownloadOption, type DownloadFlag, hubFolder } from "./hub-model.js";
import { integerOption, numberOption, setOption } from "./options.js";
import { print, printResult } from "./terminal.js";

interface PlanCommandOptions extends MachineOptions, DownloadFlag {
  set: string[];
  json?: true;
}

export function addPlan(program: Command): void {
  const bandwidth = { above: 0, max: 1e6 };
  const command = program
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
    .option("--gpu <name>", "its memory, links and measured speed: a100-40g, h100, ...")
    .addOption(integerOption("--gpus <n>", "GPUs of the run, a process each", 1, 65_536))
    .addOption(integerOption("--gpus-per-node <n>", "GPUs of a node (all, at most 8)", 1, 65_536))
    .addOption(
      numberOption("--node-bandwidth <n>", "GB/s between GPUs of a node, each way", bandwidth),
    )
    .addOption(
      numberOption("--network-bandwidth <n>", "GB/s of a node to the others, each way", bandwidth),
    )
    .option("--json", "print the plan as JSON");
  addDownloadOption(command).action(async (file: string, options: PlanCommandOptions) => {
    const { set, json, download, ...machine } = options;
    const flags: DownloadFlag = download ? { download } : {};
    const config = await readConfig(file, set, (model) => hubFolder(model, flags));
    const { planRun } = await import("../plan/plan.js");
    const { formatPlan } = await import("../plan/text.js");
    const { plannedRepeats } = await import("../plan/repeats.js");
    const planned = planRun(config, machine);
    const windows = planned.tokens / config.data.sequenceLength;
    const plan = { ...planned, data: await plannedRepeats(config, windows) };
    if (json) printResult(`${JSON.stringify(plan, null, 2)}\n`);
    else print(formatPlan(config, plan));
  });
}
