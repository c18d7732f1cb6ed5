import { execFile } from "node:child_process";
import { cpus, release } from "node:os";
import { fileURLToPath } from "node:url";
import type { Command } from "commander";
import { probeCuda } from "../core/cuda.js";
import { exitCodes } from "../core/errors.js";
import { groupLimits, usableMemory, usableThreads } from "../core/machine-limits.js";
import { addonFile, probeAddon, thisSystem } from "../core/native-load.js";
import { formatBytes } from "../plan/format.js";
import { processorName } from "../train/machine.js";
import { print, printResult } from "./terminal.js";
import { packageVersion } from "./version.js";

export function addDoctor(program: Command): void {
  program
    .command("doctor")
    .description("what this machine can do: CPU, memory, GPUs, the native addon, versions")
    .option("--json", "print the findings as JSON")
    .action(async ({ json }: { json?: true }) => {
      const { lines, healthy } = await examine();
      if (!healthy) process.exitCode = exitCodes.usage;
      if (json) {
        printResult(`${JSON.stringify({ healthy, findings: factsOf(lines) }, null, 2)}\n`);
        return;
      }
      const width = Math.max(...lines.map(([name]) => name.length));
      for (const [name, text] of lines) {
        // Further lines of a long message stay in the second column.
        const indented = text.replaceAll("\n", `\n${" ".repeat(width + 2)}`);
        print(`${name.padEnd(width)}  ${indented}\n`);
      }
    });
}

/** The lines by name. A line without a name belongs to the one before it. */
function factsOf(lines: readonly [string, string][]): Record<string, string[]> {
  const facts: Record<string, string[]> = {};
  let last = "";
  for (const [name, text] of lines) {
    last = name || last;
    facts[last] = [...(facts[last] ?? []), ...text.split("\n")];
  }
  return facts;
}

/** Examines the machine, one line a finding. The machine is healthy if training can run on it. */
async function examine(): Promise<{ lines: [string, string][]; healthy: boolean }> {
  const memory = usableMemory();
  const lines: [string, string][] = [
    ["LlamaForge", packageVersion],
    ["Node.js", `${process.version}, ${process.platform} ${process.arch}${libcVersion()}`],
    ["system", release()],
    ["CPU", `${processorName()}, ${cpus().length} logical cores, ${usableThreads()} usable`],
    ["memory", `${formatBytes(memory.bytes)}, ${formatBytes(memory.freeBytes)} free`],
    ...containerLines(),
  ];
  const addon = await addonLine();
  lines.push(["native addon", addon.text]);
  const tokenizers = await loadedVersion("tokenizers", 'import("tokenizers")');
  const uplot = await loadedVersion("uplot", uplotFiles);
  lines.push(["tokenizers", tokenizers.text], ["uplot", uplot.text]);
  if (addon.usable) lines.push(...(await cudaLines()));
  return { lines, healthy: addon.usable && tokenizers.usable && uplot.usable };
}

/** Limits of the container that this process runs in, if it has any. */
function containerLines(): [string, string][] {
  const { cores, memoryBytes } = groupLimits();
  const parts = [
    ...(cores === null ? [] : [`CPU time of ${Number(cores.toFixed(2))} cores`]),
    ...(memoryBytes === null ? [] : [`${formatBytes(memoryBytes)} of memory`]),
  ];
  return parts.length === 0 ? [] : [["container", `allows ${parts.join(", ")}`]];
}

/**
 * Loads the addon, for the first time in this process, and before that in a child process: doctor
 * can then report an addon that crashes.
 */
async function addonLine(): Promise<{ text: string; usable: boolean }> {
  const root = fileURLToPath(new URL("../..", import.meta.url));
  const failure = await probeAddon(root);
  if (failure !== null) return { text: `does not load: ${failure}`, usable: false };
  const { buildInfo } = await import("../core/native.js");
  const { version, compiler, instructionSet, threads } = buildInfo();
  return {
    text:
      `${version}, kernels for ${instructionSet}, ${threads} threads, compiler ${compiler}\n` +
      `from ${addonFile(root)}`,
    usable: true,
  };
}

/**
 * Describes the plugin and the GPUs, or why there are none. That is not a fault, because training
 * then runs on the CPU.
 */
async function cudaLines(): Promise<[string, string][]> {
  const { buildInfo, pluginFolders } = await import("../core/native.js");
  const probe = await probeCuda(pluginFolders(buildInfo()));
  if (!probe.info) return [["CUDA", `not usable, so training runs on the CPU: ${probe.error}`]];
  const { plugin, passedOver, driver, libraries, devices } = probe.info;
  return [
    ["CUDA", `driver for CUDA ${driver}${probe.driverFile ? ` from ${probe.driverFile}` : ""}`],
    ["", `plugin ${plugin}, ${reasonOfPlugin()}`],
    ...passedOver.map((reason): [string, string] => ["", `not taken: ${reason}`]),
    ...libraries.map((library): [string, string] => ["", library]),
    ...devices.map(({ name, capability, memoryBytes }, i): [string, string] => {
      const free = probe.free[i];
      const state =
        typeof free === "number" ? `${formatBytes(free)} free` : `cannot be used now: ${free}`;
      return [`cuda:${i}`, `${name}, sm ${capability}, ${formatBytes(memoryBytes)}, ${state}`];
    }),
  ];
}

function reasonOfPlugin(): string {
  return process.env.LLAMAFORGE_CUDA_PLUGIN === undefined
    ? "the newest that runs with this machine's driver and libraries"
    : "which LLAMAFORGE_CUDA_PLUGIN names";
}

function libcVersion(): string {
  const { glibc } = thisSystem();
  return glibc ? `, glibc ${glibc}` : "";
}

/** Reads the files of uplot that a report needs. */
const uplotFiles = `for (const file of ["uPlot.iife.min.js", "uPlot.min.css"])
  fs.readFileSync(require.resolve("uplot/dist/" + file))`;

/**
 * Loads a dependency in a child process and returns its version. A native binding may crash, or be
 * one for another system, whatever its package.json says.
 */
function loadedVersion(name: string, load: string): Promise<{ text: string; usable: boolean }> {
  const program = `const fs = require("node:fs");
    (async () => { ${load.startsWith("import") ? `await ${load}` : load};
      fs.writeSync(1, "loaded " + require(${JSON.stringify(`${name}/package.json`)}).version);
    })().catch((error) => { fs.writeSync(2, String(error?.message ?? error)); process.exit(1); });`;
  const cwd = fileURLToPath(new URL("../..", import.meta.url));
  return new Promise((resolve) => {
    const options = { cwd, timeout: 60_000, maxBuffer: 2 ** 24 };
    execFile(process.execPath, ["-e", program], options, (failure, stdout, stderr) => {
      const version = /^loaded (.+)$/.exec(stdout)?.[1];
      if (!failure && version !== undefined) return resolve({ text: version, usable: true });
      const how = failure?.signal ? `the process was ended by ${failure.signal}` : stderr.trim();
      const again = "Install it again: npm install --force";
      resolve({ text: `does not load: ${how.slice(0, 2000)}\n${again}`, usable: false });
    });
  });
}
