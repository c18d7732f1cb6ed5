import { access, mkdir, readFile, rm, symlink } from "node:fs/promises";
import { homedir } from "node:os";
import { dirname, join, relative } from "node:path";
import { makeFolder } from "../files/make-folder.js";
import { replaceFile } from "../files/replace-file.js";
import type { HubReference } from "./reference.js";

// The cache of the Hub's own tools, so that a model lies on the disk once:
//   models--OWNER--NAME/blobs/HASH, refs/REVISION with a commit, snapshots/COMMIT/FILE -> blob

/** The folder of all cached models: HF_HUB_CACHE, else `hub` in HF_HOME, else below the user's caches. */
export function cacheFolder(): string {
  const { HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME } = process.env;
  if (HF_HUB_CACHE) return HF_HUB_CACHE;
  if (HF_HOME) return join(HF_HOME, "hub");
  return join(XDG_CACHE_HOME || join(homedir(), ".cache"), "huggingface", "hub");
}

/** A model's place in the cache. */
export class HubCache {
  readonly folder: string;

  constructor({ name }: HubReference, root = cacheFolder()) {
    this.folder = join(root, `models--${name.replace("/", "--")}`);
  }

  /** The commit of a revision as it was last fetched; null if it never was. */
  async commitOf(revision: string): Promise<string | null> {
    if (/^[0-9a-f]{40}$/.test(revision)) return revision;
    const text = await readFile(join(this.folder, "refs", revision), "utf8").catch(() => null);
    const commit = text?.trim() ?? "";
    return /^[0-9a-f]{40}$/.test(commit) ? commit : null;
  }

  /** Notes the commit of a revision. */
  async noteCommit(revision: string, commit: string): Promise<void> {
    if (revision === commit) return;
    const file = join(this.folder, "refs", revision);
    await makeFolder(dirname(file));
    await replaceFile(file, commit);
  }

  /** The folder with the files of a commit. */
  snapshot(commit: string): string {
    return join(this.folder, "snapshots", commit);
  }

  /** The place of a file's bytes, whose hash is its name. */
  blob(hash: string): string {
    return join(this.folder, "blobs", hash);
  }

  /** Makes a file of a commit a link to its bytes. */
  async link(commit: string, path: string, hash: string): Promise<void> {
    const file = join(this.snapshot(commit), path);
    await mkdir(dirname(file), { recursive: true });
    await rm(file, { force: true });
    await symlink(relative(dirname(file), this.blob(hash)), file);
  }
}

/** Whether a path leads to a file. */
export async function isThere(path: string): Promise<boolean> {
  return await access(path).then(
    () => true,
    () => false,
  );
}
