import { spawn } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { root } from "./build.js";

/** The program of the command line; `buildLibrary()` builds it. */
export const cliFile = join(root, "dist/cli/main.js");

export interface CliResult {
  code: number | null;
  stdout: string;
  stderr: string;
}

/** Runs the command line in a process of its own. */
export async function llamaforge(
  args: string[],
  options: { cwd?: string } = {},
): Promise<CliResult> {
  const child = spawn(process.execPath, [cliFile, ...args], { cwd: options.cwd ?? root });
  const result: CliResult = { code: null, stdout: "", stderr: "" };
  child.stdout.on("data", (chunk: Buffer) => {
    result.stdout += chunk;
  });
  child.stderr.on("data", (chunk: Buffer) => {
    result.stderr += chunk;
  });
  [result.code] = (await once(child, "close")) as [number | null];
  return result;
}
