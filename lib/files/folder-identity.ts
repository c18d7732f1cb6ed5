/** Checks that a path still leads to the folder in which a process works. */
import { type BigIntStats, close, constants, fstat, open } from "node:fs";
import { stat } from "node:fs/promises";
import { promisify } from "node:util";

// Plain descriptors, because the garbage collector closes a forgotten FileHandle with a warning.
const openDescriptor = promisify(open) as (path: string, flags: number) => Promise<number>;
const closeDescriptor = promisify(close);
const statDescriptor = promisify(fstat) as (
  descriptor: number,
  options: { bigint: true },
) => Promise<BigIntStats>;

/**
 * A folder that a process writes into for a long time. Its path may come to lead elsewhere:
 * somebody renames the folder (`mv runs/a runs/a.old`) or one above it, or removes it, and makes a
 * new one at the same path. Later writes would land among a stranger's files, and deletions would
 * hit them. `moved()` is therefore asked before each write and each deletion.
 *
 * The folder is held open, because a device and an inode number identify a folder only as long as
 * it exists. The numbers of a removed folder are soon reused.
 *
 * The folder may still be moved between the question and the write. Files are therefore written
 * through `root`, which leads to the open folder itself, wherever it is.
 */
export class FolderIdentity {
  /** The user's path of the folder: for messages, and for reading. */
  readonly path: string;
  /**
   * A path for writing: `/proc/self/fd/N`, valid in this process only. Without /proc it is `path`.
   */
  readonly root: string;
  readonly #descriptor: number;
  #closed = false;

  private constructor(path: string, root: string, descriptor: number) {
    this.path = path;
    this.root = root;
    this.#descriptor = descriptor;
  }

  /**
   * Remembers the folder that a path leads to now. @throws the system's error if there is no folder
   */
  static async of(path: string): Promise<FolderIdentity> {
    const descriptor = await openDescriptor(path, constants.O_RDONLY | constants.O_DIRECTORY);
    const link = `/proc/self/fd/${descriptor}`;
    const linked = await stat(link).then(
      (status) => status.isDirectory(),
      () => false,
    );
    const identity = new FolderIdentity(path, linked ? link : path, descriptor);
    const why = await identity.moved().catch(async (error: unknown) => {
      await identity.close();
      throw error;
    });
    if (why === null) return identity;
    await identity.close();
    throw new Error(why);
  }

  /**
   * Compares the folder at the path with the open one, by device and inode.
   * @returns null if they are the same; otherwise a sentence that tells the user what happened
   * @throws the system's error if it gives no answer, as for storage that is offline for a while:
   *   that proves nothing
   */
  async moved(): Promise<string | null> {
    if (this.#closed) throw new Error(`the folder ${this.path} is no longer watched`);
    const mine = await statDescriptor(this.#descriptor, { bigint: true });
    const there = await stat(this.path, { bigint: true }).catch((error: unknown) => {
      if (["ENOENT", "ENOTDIR"].includes((error as NodeJS.ErrnoException).code ?? "")) return null;
      throw error;
    });
    if (there !== null && there.dev === mine.dev && there.ino === mine.ino) return null;
    const found = there === null ? "nothing is there now" : "another folder is there now";
    return `${this.path} was moved or removed while it was in use (${found})`;
  }

  /** Replaces `root` in a text with the user's path. */
  named(text: string): string {
    return text.replaceAll(this.root, this.path);
  }

  /** Closes the folder. A second call does nothing. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    await closeDescriptor(this.#descriptor);
  }
}
