/** Whether the folder that a process works in is still the one behind its path. */
import { type BigIntStats, close, constants, fstat, open } from "node:fs";
import { stat } from "node:fs/promises";
import { promisify } from "node:util";

// Plain descriptors: a FileHandle that a caller forgets is closed by the garbage collector, with a warning.
const openDescriptor = promisify(open) as (path: string, flags: number) => Promise<number>;
const closeDescriptor = promisify(close);
const statDescriptor = promisify(fstat) as (
  descriptor: number,
  options: { bigint: true },
) => Promise<BigIntStats>;

/**
 * A folder that a process writes into for a long time, by its path. The path may come to lead elsewhere meanwhile: the
 * folder is renamed (`mv runs/a runs/a.old`), one above it is, or it is removed, and somebody else makes a new one
 * there. What is written after that would land among a stranger's files, and what is deleted would be a stranger's.
 * So `moved()` is asked before each write and each deletion.
 *
 * The folder is held open, because a device and an inode number name a folder only as long as it exists: those of a
 * removed folder are soon given to a new one.
 *
 * Between the question and the write the folder may still be moved. So what is written goes through `root`, which leads
 * to the open folder itself, wherever that is.
 */
export class FolderIdentity {
  /** Where the user said it is: for messages, and for what is only read. */
  readonly path: string;
  /** A path for writing: `/proc/self/fd/N`, valid in this process only; where there is no /proc, `path`. */
  readonly root: string;
  readonly #descriptor: number;
  #closed = false;

  private constructor(path: string, root: string, descriptor: number) {
    this.path = path;
    this.root = root;
    this.#descriptor = descriptor;
  }

  /** Remembers the folder that a path leads to now. @throws the system's error if there is none */
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
   * Compares the folder behind the path with the one that was opened, by device and inode.
   * @returns null if they are the same, else what happened to the folder, as a sentence for the user
   * @throws the system's error if it does not say, as storage that is out of reach for a while: that proves nothing
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

  /** A text that names files below `root` with their names for the user. */
  named(text: string): string {
    return text.replaceAll(this.root, this.path);
  }

  /** Lets the folder go. Does nothing the second time. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    await closeDescriptor(this.#descriptor);
  }
}
