import { access } from "node:fs/promises";
import { join } from "node:path";
import type { Command } from "commander";
import { boundedList } from "../core/bounded-list.js";
import { CheckpointError, LlamaForgeError, UsageError } from "../core/errors.js";
import { print, printResult } from "./terminal.js";

export function addVerify(program: Command): void {
  program
    .command("verify")
    .description(
      "hashes and completeness of a checkpoint, a run's checkpoints, a data set or weights",
    )
    .argument("<folder>", "of a checkpoint, a run, a data set, or a Hugging Face model")
    .option("--json", "print the findings as JSON")
    .action(async (folder: string, { json }: { json?: true }) => {
      const { lines, error } = await verify(folder);
      const facts = { folder, complete: error === null, findings: lines, error: error?.message };
      if (json) printResult(`${JSON.stringify(facts, null, 2)}\n`);
      else for (const line of lines) print(`${line}\n`);
      if (error !== null) throw error;
    });
}

/** Verifies a folder. Returns the findings up to the first error, and that error. */
async function verify(folder: string): Promise<{ lines: string[]; error: LlamaForgeError | null }> {
  if (await exists(join(folder, "manifest.json"))) return await collect([folder], checkpoint);
  if (await exists(join(folder, "dataset.json"))) return await collect([folder], dataset);
  const { listCheckpoints } = await import("../checkpoint/folder.js");
  const places = await listCheckpoints(folder);
  if (places.length > 0) {
    return await collect(
      places.map(({ path }) => path),
      checkpoint,
    );
  }
  if (await exists(join(folder, "config.json"))) return await collect([folder], weights);
  throw new UsageError(
    `${folder} is no checkpoint (manifest.json), run (step-*), data set (dataset.json) or model (config.json)`,
  );
}

async function collect(folders: string[], check: (folder: string) => Promise<string>) {
  const lines: string[] = [];
  const failures: LlamaForgeError[] = [];
  for (const folder of folders) {
    try {
      lines.push(`${folder}: ${await check(folder)}`);
    } catch (error) {
      if (!(error instanceof LlamaForgeError)) throw error;
      failures.push(error);
    }
  }
  if (failures.length < 2) return { lines, error: failures[0] ?? null };
  return { lines, error: new CheckpointError(boundedList(failures.map(({ message }) => message))) };
}

async function checkpoint(folder: string): Promise<string> {
  const { openCheckpoint } = await import("../checkpoint/load.js");
  const { step, manifest } = await openCheckpoint(folder, { hashes: true });
  const bytes = [...manifest.files.values()].reduce((sum, file) => sum + file.bytes, 0);
  return `checkpoint of step ${step}, ${manifest.files.size} files, ${count(bytes)} bytes, all hashes match`;
}

async function dataset(folder: string): Promise<string> {
  const { verifyDataset } = await import("../data/verify.js");
  const notices: string[] = [];
  const { splits } = await verifyDataset(folder, (notice) => notices.push(`\n  ${notice}`));
  const parts = Object.entries(splits).map(
    ([name, { tokens, shards }]) => `${name} ${count(tokens)} tokens in ${shards.length} shards`,
  );
  return `data set, ${parts.join(", ")}, all hashes match${notices.join("")}`;
}

/**
 * Verifies a model folder, which has no hashes of its own: every header is checked, and the
 * presence of every tensor in the index.
 */
async function weights(folder: string): Promise<string> {
  const { readWeights } = await import("../checkpoint/weights.js");
  const { tensors } = await readWeights(folder, { followLinks: true });
  return `${tensors.size} tensors, complete (a model folder holds no hashes to compare)`;
}

function count(value: number): string {
  return value.toLocaleString("en-US");
}

async function exists(path: string): Promise<boolean> {
  return await access(path).then(
    () => true,
    () => false,
  );
}
