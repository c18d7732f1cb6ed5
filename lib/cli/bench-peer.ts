import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import type { Command } from "commander";
import type { DecodeResult } from "../bench/decode.js";
import type { ParityResult } from "../bench/parity.js";
import { type PeerOptions, runDecodePeer, runPeer } from "../bench/peer.js";
import { exitCodes, UsageError } from "../core/errors.js";
import type { ParityCommandOptions, PeerCommandOptions } from "./bench.js";

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
  const ours = await inOwnProcess<ParityResult>(command);
  if (!ours) return null;
  say(`${Math.round(ours.tokensPerSecond)} tokens/s; now the peer`);
  return await besides(ours, async () => {
    const peer = await runPeer(ours, peerOptions(options, say));
    const ratio = ours.tokensPerSecond / peer.tokensPerSecond;
    return { ...ours, peer: { ...peer, ratio } };
  });
}

/** As `parityBesidePeer`, for decoding. */
export async function decodeBesidePeer(
  command: Command,
  options: PeerCommandOptions,
  say: (message: string) => void,
): Promise<{ result: DecodeResult; failure?: UsageError } | null> {
  const ours = await inOwnProcess<DecodeResult>(command);
  if (!ours) return null;
  const rates = ours.rows.map(({ tokensPerSecond }) => Math.round(tokensPerSecond));
  say(`${rates.join(", ")} tokens/s; now the peer`);
  return await besides(ours, async () => {
    return { ...ours, peer: await runDecodePeer(ours, peerOptions(options, say)) };
  });
}

function peerOptions(
  { peer: interpreter = "python3", peerScript: script, peerArgs }: PeerCommandOptions,
  say: (message: string) => void,
): PeerOptions {
  return {
    interpreter,
    ...(script !== undefined && { script }),
    ...(peerArgs !== undefined && { args: peerArgs }),
    onLine: (line) => say(`  peer: ${line}`),
  };
}

async function besides<Result>(
  ours: Result,
  withPeer: () => Promise<Result>,
): Promise<{ result: Result; failure?: UsageError }> {
  try {
    return { result: await withPeer() };
  } catch (error) {
    if (!(error instanceof UsageError)) throw error;
    return { result: ours, failure: error };
  }
}

/** Runs a benchmark with this command's options in another process. @returns null if it failed */
async function inOwnProcess<Result>(command: Command): Promise<Result | null> {
  const folder = await mkdtemp(join(tmpdir(), "llamaforge-bench-"));
  try {
    const file = join(folder, "result.json");
    const flags = command.options
      .filter((option) => !ownOptions.has(option.attributeName()))
      .filter((option) => command.getOptionValueSource(option.attributeName()) === "cli")
      .flatMap((option) => [
        option.long as string,
        String(command.getOptionValue(option.attributeName())),
      ]);
    const args = [cliFile, "bench", command.name(), ...flags, "--json", file];
    const child = spawn(process.execPath, args, { stdio: ["ignore", "ignore", "inherit"] });
    const [code] = (await once(child, "close")) as [number | null];
    if (code !== 0) {
      process.exitCode = code ?? exitCodes.bug;
      return null;
    }
    return JSON.parse(await readFile(file, "utf8")) as Result;
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}
