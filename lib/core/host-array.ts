import { OutOfMemoryError } from "./errors.js";

interface Kind {
  BYTES_PER_ELEMENT: number;
  new (content: number | ArrayBuffer): object;
}

/**
 * A typed array of zeros whose length comes from a user or a file, or one over a buffer.
 * @throws OutOfMemoryError with the bytes, where the engine throws a RangeError for what the system refuses or no array can hold
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
