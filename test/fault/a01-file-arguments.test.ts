// docs/faults.md, rows A1, A4 and A5, for the file functions. No argument is coerced, no foreign
// object is unwrapped, and no call stops halfway.
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { io } from "../../lib/checkpoint/native-io.js";
import { addon } from "../../lib/core/native.js";
import { temporaryFolder } from "../checkpoint/support/harness.js";

type Loose = (...args: unknown[]) => unknown;
const loose = io as unknown as Record<string, Loose>;

let folder: ReturnType<typeof temporaryFolder>;
beforeAll(() => {
  folder = temporaryFolder();
});
afterAll(() => folder.remove());

const good: Record<string, () => unknown[]> = {
  parseSafetensorsHeader: () => ["/nowhere", 100],
  formatSafetensorsHeader: () => [["a"], ["F32"], [[1]], [["k", "v"]]],
  readTensor: () => [
    "/nowhere",
    "",
    0,
    4,
    "F32",
    new addon.NativeTensor(0, "f32", [1]),
    "w",
    "any",
  ],
  readBytes: () => ["/nowhere", "", 0, 4],
  hashFile: () => ["/nowhere"],
  syncDirectory: () => ["/nowhere"],
  renamePath: () => ["/nowhere", "/nowhere2"],
  exchangePaths: () => ["/nowhere", "/nowhere2"],
};

const hostile: [string, unknown][] = [
  ["undefined", undefined],
  ["null", null],
  ["NaN", Number.NaN],
  ["-1", -1],
  ["1.9", 1.9],
  ["Infinity", Number.POSITIVE_INFINITY],
  ["2^53", 2 ** 53],
  ["a bigint", 1n],
  ["a boolean", true],
  ["a symbol", Symbol("x")],
  ["an object", {}],
  ["a function", () => "/tmp"],
  ["a String object", new String("/tmp")],
  ["an object with toString", { toString: () => "/tmp", valueOf: () => 1 }],
  ["a path with NUL", "/tmp\0x"],
  ["an empty string", ""],
];

// An empty identity means any file. The parse limit and offsets may be any whole number below 2^53.
const allowed = new Set([
  "readTensor 1 an empty string",
  // A tensor may have any name.
  "readTensor 6 an empty string",
  "readTensor 6 a path with NUL",
  "readBytes 1 an empty string",
]);

async function outcome(run: () => unknown): Promise<{ code?: string }> {
  try {
    await run();
    return {};
  } catch (error) {
    return error as { code?: string };
  }
}

describe.each(Object.keys(good))("%s", (name) => {
  const call = loose[name] as Loose;

  test("every wrong value in every place is an error before anything happens", () => {
    for (let place = 0; place < (good[name]?.().length ?? 0); place += 1) {
      for (const [what, value] of hostile) {
        const args = good[name]?.() ?? [];
        // Strings in the place of a free string are tested by their meaning below.
        if (typeof value === "string" && typeof args[place] !== "string") continue;
        if (allowed.has(`${name} ${place} ${what}`)) continue;
        if (what === "a path with NUL" && (place === 1 || place === 4) && name.startsWith("read"))
          continue;
        args[place] = value;
        expect(() => call(...args), `${name} ${place} ${what}`).toThrow(
          expect.objectContaining({ code: expect.stringMatching(/^ERR_(ARGUMENT|DTYPE)$/) }),
        );
      }
    }
  });

  test("the number of arguments is exact", () => {
    const args = good[name]?.() ?? [];
    expect(() => call(...args.slice(1))).toThrow(/expected \d arguments, got/);
    expect(() => call(...args, 1)).toThrow(/expected \d arguments, got/);
    expect(() => call()).toThrow(/expected \d arguments, got 0/);
  });
});

test("lists for a header are checked element by element", () => {
  const format = io.formatSafetensorsHeader as unknown as Loose;
  for (const args of [
    [["a"], [], [[1]], []],
    [["a"], ["F32"], [], []],
    [[1], ["F32"], [[1]], []],
    [["a"], [1], [[1]], []],
    [["a"], ["F32"], [["1"]], []],
    [["a"], ["F32"], [[1.5]], []],
    [["a"], ["F32"], [Array(65).fill(1)], []],
    [["a"], ["F32"], [[1]], ["k"]],
    [["a"], ["F32"], [[1]], [["k", 1]]],
  ]) {
    expect(() => format(...args), JSON.stringify(args)).toThrow(
      expect.objectContaining({ code: "ERR_ARGUMENT" }),
    );
  }
  const trap: unknown[] = ["a"];
  Object.defineProperty(trap, 0, {
    get() {
      throw new RangeError("trap");
    },
  });
  expect(() => format(trap, ["F32"], [[1]], [])).toThrow("trap");
});

test("tensors are known by their tag", () => {
  const read = io.readTensor as unknown as Loose;
  const tensor = new addon.NativeTensor(0, "f32", [1]);
  for (const fake of [
    {},
    Object.create(tensor),
    new Proxy(tensor, {}),
    new io.FileLock(join(folder.path, "l")),
  ]) {
    expect(() => read("/nowhere", "", 0, 4, "F32", fake, "w", "any")).toThrow(/expected a tensor/);
  }
});

test("more than 16 MiB at a time is refused, before memory is taken", () => {
  expect(() => io.readBytes("/nowhere", "", 0, 16 * 1024 * 1024 + 1)).toThrow(/at most 16777216/);
  expect(() => io.readBytes("/nowhere", "", 0, 2 ** 52)).toThrow(/at most 16777216/);
});

describe("DurableFile", () => {
  test("takes a Uint8Array whose memory is its own, and no other", async () => {
    const path = join(folder.path, "durable");
    const file = new io.DurableFile(path);
    await file.open();
    const write = (value: unknown) => file.write(value as Uint8Array);
    const detached = new Uint8Array(8);
    structuredClone(detached.buffer, { transfer: [detached.buffer] });
    for (const value of [
      undefined,
      "text",
      [1, 2],
      new ArrayBuffer(4),
      new DataView(new ArrayBuffer(4)),
      new Float32Array(2),
      new Uint8ClampedArray(2),
      new Uint8Array(new SharedArrayBuffer(4)),
      detached,
      new Uint8Array(16 * 1024 * 1024 + 1),
    ]) {
      expect(() => write(value)).toThrow(expect.objectContaining({ code: "ERR_ARGUMENT" }));
    }
    // The call does not read properties by which an object could lie about itself.
    const liar = Uint8Array.of(1, 2, 3);
    Object.defineProperty(liar, "length", { value: 1e9 });
    Object.defineProperty(liar, "buffer", { value: new ArrayBuffer(1) });
    await file.write(liar);
    await file.write(new Uint8Array([0, 0, 4, 5, 0]).subarray(2, 4));
    const moved = Uint8Array.of(6);
    const writing = file.write(moved);
    structuredClone(moved.buffer, { transfer: [moved.buffer] });
    await writing;
    expect((await file.finish()).bytes).toBe(6);
    expect([...readFileSync(path)]).toEqual([1, 2, 3, 4, 5, 6]);
  });

  test("goes open, write, finish, once each and one at a time", async () => {
    const path = join(folder.path, "order");
    const file = new io.DurableFile(path);
    expect(() => file.write(new Uint8Array(1))).toThrow(/is not open/);
    expect(() => file.finish()).toThrow(/is not open/);
    const opening = file.open();
    expect(() => file.write(new Uint8Array(1))).toThrow(/is busy/);
    await opening;
    expect(() => file.open()).toThrow(/opened before/);
    await file.finish();
    expect(() => file.finish()).toThrow(/is not open/);
    await file.abandon();
    const second = new io.DurableFile(path);
    expect(await outcome(() => second.open())).toMatchObject({
      code: "EEXIST",
      errno: -17,
      syscall: "create",
      path,
    });
    expect(() => second.write(new Uint8Array(1))).toThrow(/is not open/);
  });

  test("cannot be made or called with anything else as this", () => {
    const { open } = io.DurableFile.prototype as unknown as Record<string, Loose>;
    for (const other of [
      {},
      null,
      new addon.NativeTensor(0, "f32", [1]),
      Object.create(io.DurableFile.prototype),
    ]) {
      expect(() => open?.call(other)).toThrow(TypeError);
    }
    expect(() => (io.DurableFile as unknown as Loose)("x")).toThrow(TypeError);
    for (const bad of [undefined, 1, "", "a\0b"]) {
      expect(() => new io.DurableFile(bad as string)).toThrow(
        expect.objectContaining({ code: "ERR_ARGUMENT" }),
      );
    }
    expect(existsSync(join(folder.path, "x"))).toBe(false);
  });
});
