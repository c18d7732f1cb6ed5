import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { record, scalarEvent, TensorBoardWriter } from "../../lib/report/tensorboard.js";
import { fakeSteps } from "./fake-run.js";

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "tensorboard-"));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** Lengths of the records of a file, whose sum is the file's. */
function records(bytes: Buffer): Buffer[] {
  const found: Buffer[] = [];
  let at = 0;
  while (at < bytes.length) {
    const length = Number(bytes.readBigUInt64LE(at));
    found.push(bytes.subarray(at + 12, at + 12 + length));
    at += length + 16;
  }
  expect(at).toBe(bytes.length);
  return found;
}

describe("TensorBoard's files", () => {
  it("have records with masked CRC-32C, as a file of TensorFlow has them", () => {
    // The first record that TensorFlow 2 writes into a file at time 0: its version.
    const data = Buffer.concat([
      Buffer.from([0x09, 0, 0, 0, 0, 0, 0, 0, 0, 0x1a, 0x0d]),
      Buffer.from("brain.Event:2"),
    ]);
    const framed = record(data);
    expect(framed.subarray(0, 12).toString("hex")).toBe("1800000000000000a37f4b22");
    expect(framed.length).toBe(data.length + 16);
  });

  it("hold time, step, names and values of a step in the fields of event.proto", () => {
    const event = scalarEvent(1.5, 300, { a: 2 });
    expect(event.toString("hex")).toBe(
      // 1: double 1.5; 2: varint 300; 5: { 1: { 1: "a", 2: float 2 } }
      "09000000000000f83f" + "10ac02" + "2a0a" + "0a08" + "0a0161" + "1500000040",
    );
  });

  it("get one record for each step", async () => {
    const notices: string[] = [];
    const writer = await TensorBoardWriter.open(folder, (message) => notices.push(message));
    for (const step of fakeSteps(100)) writer?.step(step);
    await writer?.close();
    const [name = ""] = readdirSync(folder);
    expect(name).toMatch(/^events\.out\.tfevents\.\d+\./);
    const found = records(readFileSync(join(folder, name)));
    expect(found).toHaveLength(101);
    expect(found[1]?.includes("train/loss")).toBe(true);
    expect(found[100]?.includes("validation/bits per byte")).toBe(true);
    expect(notices).toEqual([]);
  });

  it("that cannot be written are a notice", async () => {
    const file = join(folder, "a-file");
    writeFileSync(file, "");
    const notices: string[] = [];
    const inFile = join(file, "tensorboard");
    expect(await TensorBoardWriter.open(inFile, (message) => notices.push(message))).toBe(null);
    expect(notices).toEqual([expect.stringContaining("no file for TensorBoard: ")]);
    expect(existsSync(inFile)).toBe(false);
  });
});
