import { createHash, type Hash } from "node:crypto";
import { constants } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { endianness } from "node:os";
import { DataError } from "../core/errors.js";
import { openRegular } from "../files/small-file.js";

const bufferBytes = 2 ** 20;

/** A file of little-endian numbers, written from start to end and hashed on the way. */
export class HashedFile {
  readonly #handle: FileHandle;
  readonly #elementBytes: number;
  readonly #hash: Hash = createHash("sha256");
  readonly #buffer = Buffer.allocUnsafeSlow(bufferBytes);
  #filled = 0;
  #position = 0;
  #closed = false;

  private constructor(handle: FileHandle, elementBytes: number) {
    this.#handle = handle;
    this.#elementBytes = elementBytes;
  }

  static async create(path: string, elementBytes: number): Promise<HashedFile> {
    return new HashedFile(await open(path, "wx"), elementBytes);
  }

  /**
   * Opens a file to append after its first `length` bytes; later bytes are removed.
   * @param onBytes receives the kept bytes, in this machine's byte order
   */
  static async resume(
    path: string,
    elementBytes: number,
    length: number,
    onBytes: (bytes: Buffer) => void = () => {},
  ): Promise<HashedFile> {
    const flags = constants.O_RDWR;
    const handle = await openRegular(path, { flags }).catch((cause: NodeJS.ErrnoException) => {
      if (cause.code !== "ENOENT") throw cause;
      throw new DataError(`[prepare] ${path} is missing: remove its folder and begin again`);
    });
    const file = new HashedFile(handle, elementBytes);
    const buffer = Buffer.allocUnsafeSlow(bufferBytes);
    for (let at = 0; at < length; ) {
      const { bytesRead } = await handle.read(buffer, 0, Math.min(bufferBytes, length - at), at);
      if (bytesRead < elementBytes) {
        await handle.close();
        throw new DataError(
          `[prepare] ${path} has ${at} bytes instead of ${length}: remove its folder and begin again`,
        );
      }
      const whole = bytesRead - (bytesRead % elementBytes);
      const bytes = buffer.subarray(0, whole);
      file.#hash.update(bytes);
      swapped(bytes, elementBytes);
      onBytes(bytes);
      at += whole;
    }
    await handle.truncate(length);
    file.#position = length;
    return file;
  }

  /** @param bytes whole numbers in this machine's byte order */
  async write(bytes: Uint8Array): Promise<void> {
    for (let at = 0; at < bytes.length; ) {
      const count = Math.min(bytes.length - at, bufferBytes - this.#filled);
      this.#buffer.set(bytes.subarray(at, at + count), this.#filled);
      this.#filled += count;
      at += count;
      if (this.#filled === bufferBytes) await this.#flush();
    }
  }

  /** Makes everything written so far durable. */
  async sync(): Promise<void> {
    await this.#flush();
    await this.#handle.sync();
  }

  /** Ends the file. @returns the SHA-256 of its content */
  async finish(): Promise<string> {
    await this.sync();
    await this.close();
    return this.#hash.digest("hex");
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    await this.#handle.close();
  }

  async #flush(): Promise<void> {
    const bytes = this.#buffer.subarray(0, this.#filled);
    swapped(bytes, this.#elementBytes);
    this.#hash.update(bytes);
    for (let at = 0; at < bytes.length; ) {
      const { bytesWritten } = await this.#handle.write(
        bytes,
        at,
        bytes.length - at,
        this.#position,
      );
      at += bytesWritten;
      this.#position += bytesWritten;
    }
    this.#filled = 0;
  }
}

/** Swaps numbers between this machine's byte order and the little-endian order of the files. */
function swapped(bytes: Buffer, elementBytes: number): void {
  if (endianness() === "LE") return;
  if (elementBytes === 2) bytes.swap16();
  else if (elementBytes === 4) bytes.swap32();
  else if (elementBytes === 8) bytes.swap64();
}
