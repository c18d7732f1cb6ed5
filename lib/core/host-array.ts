import { OutOfMemoryError } from "./errors.js";

interface Kind {
  BYTES_PER_ELEMENT: number;
  new (content: number | ArrayBuffer): object;
}

/**
 * A typed array over a buffer, or one of zeros with a length that comes from a user or a file.
 * @throws OutOfMemoryError with the number of bytes, where the engine throws a RangeError because
 *   the system refuses the memory or no array can be that long
 */
export function hostArray<T extends Kind>(
  op: string,
  kind: T,
  content: number | ArrayBuffer,
): InstanceType<T> {
  try {
    return new kind(content) as InstanceType<T>;
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    const bytes =
      typeof content === "number" ? content * kind.BYTES_PER_ELEMENT : content.byteLength;
    throw new OutOfMemoryError(
      `[${op}] no array on the host takes ${bytes} bytes now: ask for less at a time`,
    );
  }
}
