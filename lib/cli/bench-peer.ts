import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import type { Command } from "commander";
import type { ParityResult } from "../bench/parity.js";
import { runPeer } from "../bench/peer.js";
import { exitCodes, UsageError } from "../core/errors.js";
import type { ParityCommandOptions } from "./bench.js";

/** Options of this process. All others are passed on to the measurement. */
const ownOptions = new Set(["peer", "peerScript", "peerArgs", "json"]);

const cliFile = fileURLToPath(new URL("./main.js", import.meta.url));

/**
 * Measures LlamaForge, then its peer with the same micro-batch. Each runs in a process of its own,
 * so that neither holds GPU memory while the other runs.
 * @returns null if LlamaForge's own measurement failed: its process has printed the reason, and
 *   `process.exitCode` is its exit code. If only the peer failed, the result holds LlamaForge's
 *   figures and `failure` the reason
 */
export async function parityBesidePeer(
  command: Command,
  options: ParityCommandOptions,
  say: (message: string) => void,
): Promise<{ result: ParityResult; failure?: UsageError } | null> {
  const folder = await mkdtemp(join(tmpdir(), "llamaforge-bench-"));
  try {
    const file = join(folder, "parity.json");
    const flags = command.options
      .filter((option) => !ownOptions.has(option.attributeName()))
      .filter((option) => command.getOptionValueSource(option.attributeName()) === "cli")
      .flatMap((option) => [
        option.long as string,
        String(command.getOptionValue(option.attributeName())),
      ]);
    const args = [cliFile, "bench", "parity", ...flags, "--json", file];
    const child = spawn(process.execPath, args, { stdio: ["ignore", "ignore", "inherit"] });
    const [code] = (await once(child, "close")) as [number | null];
    if (code !== 0) {
      process.exitCode = code ?? exitCodes.bug;
      return null;
    }
    const ours = JSON.parse(await readFile(file, "utf8")) as ParityResult;
    const { peer: interpreter = "python3", peerScript: script, peerArgs } = options;
    say(`${Math.round(ours.tokensPerSecond)} tokens/s; now the peer`);
    try {
      const peer = await runPeer(ours, {
        interpreter,
        ...(script !== undefined && { script }),
        ...(peerArgs !== undefined && { args: peerArgs }),
        onLine: (line) => say(`  peer: ${line}`),
      });
      const ratio = ours.tokensPerSecond / peer.tokensPerSecond;
      return { result: { ...ours, peer: { ...peer, ratio } } };
    } catch (error) {
      if (!(error instanceof UsageError)) throw error;
      return { result: ours, failure: error };
    }
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}
