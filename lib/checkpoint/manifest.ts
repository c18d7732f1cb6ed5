/**
 * `manifest.json`, the last file that is written to a checkpoint. It lists the checkpoint's files
 * with sizes and hashes. A checkpoint is valid if its manifest parses and the sizes match; with
 * `hashes` the contents must match too.
 */

import { createHash } from "node:crypto";
import { lstat, readdir } from "node:fs/promises";
import { basename, join } from "node:path";
import { boundedList } from "../core/bounded-list.js";
import { checkBoolean, checkObject, checkOptions, checkPath } from "../core/check-values.js";
import { CheckpointError, StorageError } from "../core/errors.js";
import { checkPlainFileName, isRecord, readJson, toJson } from "./durable.js";
import { checkpointError, type Digest, guarded, io, systemCode } from "./native-io.js";

export const manifestFile = "manifest.json";
const format = "llamaforge-checkpoint";
const version = 1;
const manifestBytesLimit = 16 * 1024 * 1024;

/** The list of a checkpoint's files, with their sizes and hashes. */
export interface Manifest {
  step: number;
  /**
   * Facts about the run: hashes of config, data and tokenizer, world size, build id. Compared on
   * resume.
   */
  run: Record<string, unknown>;
  files: Map<string, Digest>;
}

/**
 * A checkpoint that is certainly broken: one of its files is missing, or has the wrong size or
 * content. Other checkpoints are refused with other errors and never deleted: those that cannot be
 * read at the moment, that another version wrote, or that contain a file put there by somebody.
 */
export class DamagedCheckpointError extends CheckpointError {}

/**
 * The text of a manifest. Its last field is the hash of the other fields, so that a flipped bit in
 * it is noticed.
 */
export function formatManifest({ step, run, files }: Manifest): string {
  const body = { format, version, step, run, files: Object.fromEntries(files) };
  // Converted to JSON and back, so that the hash covers the values that a reader will see.
  const plain: unknown = JSON.parse(toJson(manifestFile, body));
  return toJson(manifestFile, { ...(plain as object), check: checkOf(plain) });
}

function checkOf(body: unknown): string {
  return createHash("sha256").update(JSON.stringify(body)).digest("hex");
}

/** Reads and checks the manifest of a checkpoint folder, but not the files that it lists. */
export async function readManifest(folder: string): Promise<Manifest> {
  const path = join(folder, manifestFile);
  const json = await readJson(path, manifestBytesLimit).catch((error: CheckpointError) => {
    const unread = systemCode(error.cause) ?? "ENOENT";
    // Storage that does not answer proves nothing about its content.
    throw unread === "ENOENT" && !(error.cause instanceof StorageError)
      ? new DamagedCheckpointError(error.message, { cause: error.cause })
      : error;
  });
  if (!isRecord(json) || json.format !== format) {
    throw new CheckpointError(`${path}: expected the manifest of a ${format}`);
  }
  if (json.version !== version) {
    throw new CheckpointError(
      `${path}: format version ${JSON.stringify(json.version)}, this LlamaForge reads version ${version}`,
    );
  }
  const { check, ...body } = json;
  if (check !== checkOf(body)) {
    throw new DamagedCheckpointError(
      `${path}: its own hash does not match, it was damaged or edited`,
    );
  }
  const { step, run, files } = body;
  if (!Number.isSafeInteger(step) || (step as number) < 0) {
    throw new CheckpointError(`${path}: step must be a whole number, not ${JSON.stringify(step)}`);
  }
  if (!isRecord(run) || !isRecord(files)) {
    throw new CheckpointError(`${path}: "run" and "files" must be objects`);
  }
  return { step: step as number, run, files: parseFiles(path, files) };
}

function parseFiles(path: string, files: Record<string, unknown>): Map<string, Digest> {
  const digests = new Map<string, Digest>();
  for (const [name, digest] of Object.entries(files)) {
    checkPlainFileName(path, name);
    if (
      !isRecord(digest) ||
      !Number.isSafeInteger(digest.bytes) ||
      (digest.bytes as number) < 0 ||
      typeof digest.sha256 !== "string" ||
      !/^[0-9a-f]{64}$/.test(digest.sha256)
    ) {
      throw new CheckpointError(`${path}: ${name} needs "bytes" and "sha256"`);
    }
    digests.set(name, { bytes: digest.bytes as number, sha256: digest.sha256 });
  }
  return digests;
}

const loadedByName =
  /\.safetensors(\.index\.json)?$|^(config|trainer|tokenizer|tokenizer_config|special_tokens_map)\.json$/;

/**
 * Reads the manifest of a checkpoint and checks that all its files have the right size, and with
 * `hashes` the right content.
 * @throws CheckpointError listing every file at fault
 */
export async function verifyCheckpoint(
  folder: string,
  options: { hashes: boolean },
): Promise<Manifest> {
  checkPath("verifyCheckpoint", "folder", folder);
  checkObject("verifyCheckpoint", "options", options);
  checkOptions("verifyCheckpoint", options, ["hashes"]);
  const { hashes } = options;
  checkBoolean("verifyCheckpoint", "hashes", hashes);
  const manifest = await readManifest(folder);
  const problems: string[] = [];
  let damaged = false;
  for (const [name, digest] of manifest.files) {
    const problem = await fileProblem(join(folder, name), digest, hashes);
    if (problem === null) continue;
    problems.push(`${name}: ${problem.text}`);
    damaged ||= problem.certain;
  }
  // Other programs would load these files by their names, and so would this library when it opens
  // the folder as a model.
  for (const name of await guarded(`listing ${folder}`, () => readdir(folder))) {
    if (loadedByName.test(name) && !manifest.files.has(name)) {
      problems.push(`${name}: does not belong to this checkpoint`);
    }
  }
  if (problems.length > 0) {
    const list = boundedList(problems.map((problem) => `  ${problem}`));
    const Refusal = damaged ? DamagedCheckpointError : CheckpointError;
    throw new Refusal(`${folder} is not a valid checkpoint:\n${list}`);
  }
  const named = /^step-(\d{1,15})$/.exec(basename(folder));
  if (named && Number(named[1]) !== manifest.step) {
    throw new CheckpointError(`${folder} holds step ${manifest.step}: the folder was renamed`);
  }
  return manifest;
}

/**
 * Checks one file. The result says what is wrong and whether that is certain, because a file that
 * cannot be read now may be intact.
 */
async function fileProblem(
  path: string,
  wanted: Digest,
  hashes: boolean,
): Promise<{ text: string; certain: boolean } | null> {
  const damage = (text: string) => ({ text, certain: true });
  try {
    const status = await lstat(path);
    if (!status.isFile()) return damage("is not a regular file");
    if (status.size !== wanted.bytes) {
      return damage(`has ${status.size} bytes, expected ${wanted.bytes}`);
    }
    if (!hashes) return null;
    const { sha256 } = await io.hashFile(path);
    if (sha256 === wanted.sha256) return null;
    return damage(`has the hash ${sha256}, expected ${wanted.sha256}`);
  } catch (error) {
    if (systemCode(error) === "ENOENT") return damage("is missing");
    return { text: checkpointError("cannot be read", error).message, certain: false };
  }
}

/**
 * Compares a checkpoint's facts about its run with this run. Only the keys of `expected` count.
 * @throws CheckpointError with both values of everything that differs
 */
export function checkRun(
  folder: string,
  { run }: Pick<Manifest, "run">,
  expected: Readonly<Record<string, unknown>>,
): void {
  const differences = Object.entries(expected)
    .map(([key, mine]) => [key, JSON.stringify(run[key]), JSON.stringify(mine)] as const)
    .filter(([, theirs, mine]) => theirs !== mine)
    .map(
      ([key, theirs, mine]) =>
        `  ${key}: the checkpoint has ${theirs ?? "none"}, this run ${mine ?? "none"}`,
    );
  if (differences.length > 0) {
    throw new CheckpointError(`${folder} is from a different run:\n${boundedList(differences)}`);
  }
}
