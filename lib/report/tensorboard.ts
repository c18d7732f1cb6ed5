/** TensorBoard's event files: records of protocol buffers, each with checksums. */
import { createWriteStream, type WriteStream } from "node:fs";
import { hostname } from "node:os";
import { join } from "node:path";
import { makeFolder } from "../files/make-folder.js";
import type { StepMetrics } from "../train/metrics.js";

/** Table of CRC-32C, whose polynomial is 0x1EDC6F41, reflected 0x82F63B78. */
const table = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0x82f63b78 : crc >>> 1;
  return crc >>> 0;
});

function crc32c(bytes: Uint8Array): number {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = (table[(crc ^ byte) & 255] as number) ^ (crc >>> 8);
  return ~crc >>> 0;
}

/** The checksum as record files hold it, so that data which contains checksums has another one. */
function masked(bytes: Uint8Array): number {
  const crc = crc32c(bytes);
  return (((crc >>> 15) | (crc << 17)) + 0xa282ead8) >>> 0;
}

/** A record: length, its checksum, data, its checksum. */
export function record(data: Uint8Array): Buffer {
  const framed = Buffer.alloc(data.length + 16);
  framed.writeBigUInt64LE(BigInt(data.length), 0);
  framed.writeUInt32LE(masked(framed.subarray(0, 8)), 8);
  framed.set(data, 12);
  framed.writeUInt32LE(masked(data), 12 + data.length);
  return framed;
}

// Fields of a protocol buffer: a key of number and wire type, then the value.
function varint(value: number): number[] {
  const bytes: number[] = [];
  let left = value;
  while (left >= 128) {
    bytes.push((left % 128) | 128);
    left = Math.floor(left / 128);
  }
  return [...bytes, left];
}
const bytesField = (field: number, data: Uint8Array): Buffer =>
  Buffer.concat([Buffer.from([(field << 3) | 2, ...varint(data.length)]), data]);
const textField = (field: number, text: string): Buffer => bytesField(field, Buffer.from(text));
function doubleField(field: number, value: number): Buffer {
  const bytes = Buffer.alloc(9);
  bytes[0] = (field << 3) | 1;
  bytes.writeDoubleLE(value, 1);
  return bytes;
}
function floatField(field: number, value: number): Buffer {
  const bytes = Buffer.alloc(5);
  bytes[0] = (field << 3) | 5;
  bytes.writeFloatLE(value, 1);
  return bytes;
}
const intField = (field: number, value: number): Buffer =>
  Buffer.from([field << 3, ...varint(value)]);

/** An event with scalars. @param time seconds since 1970 */
export function scalarEvent(time: number, step: number, values: Record<string, number>): Buffer {
  const summary = Object.entries(values).map(([tag, value]) =>
    bytesField(1, Buffer.concat([textField(1, tag), floatField(2, value)])),
  );
  const parts = [doubleField(1, time), intField(2, step), bytesField(5, Buffer.concat(summary))];
  return Buffer.concat(parts);
}

/** The values of a step under the names that TensorBoard groups by their first part. */
function valuesOf(metrics: StepMetrics): Record<string, number> {
  const { loss, lr, gradNorm, tokensPerSecond, dataWaitMs, stepMs, deviceBytes } = metrics;
  const { validation, scores = [], figures = {}, extra = {} } = metrics;
  const held = Object.entries(validation?.figures ?? {});
  return {
    "train/loss": loss,
    "train/learning rate": lr,
    "train/gradient norm": gradNorm,
    "speed/tokens per second": tokensPerSecond,
    "speed/share of waiting for data": dataWaitMs / stepMs,
    "memory/device bytes": deviceBytes,
    ...(validation && { "validation/loss": validation.loss }),
    ...(validation?.bitsPerByte != null && { "validation/bits per byte": validation.bitsPerByte }),
    ...figures,
    ...Object.fromEntries(held.map(([name, value]) => [`validation/${name}`, value])),
    ...Object.fromEntries(scores.map(({ task, value }) => [`scores/${task}`, value])),
    ...Object.fromEntries(Object.entries(extra).map(([name, value]) => [`extra/${name}`, value])),
  };
}

/**
 * Writes the steps of a run as an event file of TensorBoard. A failure is a notice, and training
 * goes on without the file.
 */
export class TensorBoardWriter {
  readonly #stream: WriteStream;
  #failed = false;

  private constructor(stream: WriteStream, onNotice: (message: string) => void) {
    this.#stream = stream;
    stream.on("error", ({ message }) => {
      if (!this.#failed) onNotice(`TensorBoard's file is not written any more: ${message}`);
      this.#failed = true;
    });
  }

  /** @param folder folder of the event files; each start of a run adds one */
  static async open(
    folder: string,
    onNotice: (message: string) => void,
  ): Promise<TensorBoardWriter | null> {
    const seconds = Math.floor(Date.now() / 1000);
    const name = `events.out.tfevents.${seconds}.${hostname()}.${process.pid}`;
    try {
      await makeFolder(folder);
    } catch (error) {
      onNotice(`no file for TensorBoard: ${(error as Error).message}`);
      return null;
    }
    const writer = new TensorBoardWriter(
      createWriteStream(join(folder, name), { flags: "wx" }),
      onNotice,
    );
    const version = Buffer.concat([
      doubleField(1, Date.now() / 1000),
      textField(3, "brain.Event:2"),
    ]);
    writer.#write(version);
    return writer;
  }

  /** Adds a step. Returns at once. */
  step(metrics: StepMetrics): void {
    this.#write(scalarEvent(Date.parse(metrics.time) / 1000, metrics.step, valuesOf(metrics)));
  }

  /** Waits until everything is written, or refused. Never throws. */
  async close(): Promise<void> {
    if (this.#failed) return;
    await new Promise<void>((resolve) => {
      this.#stream.once("close", resolve);
      this.#stream.end();
    });
  }

  #write(event: Buffer): void {
    if (!this.#failed) this.#stream.write(record(event));
  }
}
