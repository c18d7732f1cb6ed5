// Written files are read back, by the library and by the rules of the format. Files load directly
// into tensors.
import { createHash } from "node:crypto";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { type FileDtype, fileDtypeBytes, io } from "../../lib/checkpoint/native-io.js";
import {
  readSafetensors,
  type TensorSource,
  writeSafetensors,
} from "../../lib/checkpoint/safetensors.js";
import { CheckpointError } from "../../lib/core/errors.js";
import { addon, type DType } from "../../lib/core/native.js";
import { temporaryFolder } from "../checkpoint/support/harness.js";

let folder: ReturnType<typeof temporaryFolder>;
let path: string;
beforeEach(() => {
  folder = temporaryFolder();
  path = join(folder.path, "file.safetensors");
});
afterEach(() => folder.remove());

const dtypes = Object.keys(fileDtypeBytes) as FileDtype[];
const unicodeName = fc
  .string({ unit: "binary", minLength: 0, maxLength: 12 })
  .filter((name) => !/\p{Cc}/u.test(name) && !["__metadata__", "__proto__"].includes(name));
const tensorShapes = fc.record({
  name: unicodeName,
  dtype: fc.constantFrom(...dtypes),
  shape: fc.array(fc.nat(5), { maxLength: 4 }),
});

test("any set of tensors and metadata comes back as it was written", async () => {
  let number = 0;
  await fc.assert(
    fc.asyncProperty(
      fc.uniqueArray(tensorShapes, { selector: ({ name }) => name, maxLength: 8 }),
      fc.dictionary(unicodeName, fc.string({ unit: "binary" }), { noNullPrototype: true }),
      async (tensors, metadata) => {
        const file = join(folder.path, `${number++}.safetensors`);
        const sources = tensors.map((tensor, i): TensorSource & { content: Uint8Array } => {
          const length = tensor.shape.reduce((a, b) => a * b, fileDtypeBytes[tensor.dtype]);
          const content = Uint8Array.from({ length }, (_, at) => (at * 7 + i) % 256);
          return { ...tensor, content, bytes: () => content };
        });
        const { bytes, sha256 } = await writeSafetensors(file, sources, metadata);
        const onDisk = readFileSync(file);
        expect(onDisk.length).toBe(bytes);
        expect(createHash("sha256").update(onDisk).digest("hex")).toBe(sha256);
        expect((8 + Number(onDisk.readBigUInt64LE(0))) % 8).toBe(0);
        const read = await readSafetensors(file);
        expect(new Map(Object.entries(metadata))).toEqual(read.metadata);
        expect(read.tensors.size).toBe(sources.length);
        for (const { name, dtype, shape, content } of sources) {
          const stored = read.tensors.get(name);
          expect(stored).toMatchObject({ name, dtype, shape, byteLength: content.length });
          expect(await stored?.readBytes()).toEqual(content);
        }
      },
    ),
    { numRuns: 150 },
  );
});

test("the same input gives the same bytes", async () => {
  const sources: TensorSource[] = [
    { name: "b", dtype: "BF16", shape: [3], bytes: () => new Uint8Array(6) },
    { name: "a", dtype: "F32", shape: [1], bytes: () => new Uint8Array(4) },
  ];
  const one = await writeSafetensors(path, sources, { format: "pt" });
  const two = await writeSafetensors(`${path}.2`, sources, { format: "pt" });
  expect(one).toEqual(two);
  const text = readFileSync(path).toString("latin1", 8);
  expect(text).toMatch(
    /^\{"__metadata__":\{"format":"pt"\},"a":\{"dtype":"F32","shape":\[1\],"data_offsets":\[0,4\]\},"b":\{"dtype":"BF16","shape":\[3\],"data_offsets":\[4,10\]\}\} *\0{10}$/,
  );
});

test("tensors of many pieces are read and written whole", async () => {
  const content = new Uint8Array(10_000_001);
  for (let i = 0; i < content.length; i += 1) content[i] = (i * 2654435761) >>> 24;
  await writeSafetensors(path, [
    { name: "x", dtype: "U8", shape: [content.length], bytes: () => content },
  ]);
  const read = await (await readSafetensors(path)).tensors.get("x")?.readBytes();
  expect(Buffer.compare(read ?? new Uint8Array(), content)).toBe(0);
});

describe("writing refuses", () => {
  const bytes = () => new Uint8Array(4);
  const a: TensorSource = { name: "a", dtype: "F32", shape: [1], bytes };
  test.each<[string, TensorSource[], Record<string, string>, RegExp]>([
    ["two tensors of one name", [a, a], {}, /"a" is given twice/],
    [
      "__metadata__ as a name",
      [{ ...a, name: "__metadata__" }],
      {},
      /must not be called __metadata__/,
    ],
    ["__proto__ as a name", [{ ...a, name: "__proto__" }], {}, /"__proto__" is refused/],
    ["a control character", [{ ...a, name: "a\n" }], {}, /control character/],
    ["a lone surrogate", [{ ...a, name: "a\ud800" }], {}, /well-formed/],
    ["a lone surrogate in the metadata", [a], { k: "\udc00" }, /well-formed/],
    ["a name of 5000 bytes", [{ ...a, name: "x".repeat(5000) }], {}, /longer than 4096/],
    ["too few bytes", [{ ...a, shape: [2] }], {}, /expected 8 bytes \(F32 \[2\]\), got 4/],
    ["no bytes", [{ ...a, bytes: () => undefined as never }], {}, /got a undefined/],
    [
      "a negative size",
      [{ ...a, shape: [-1] }],
      {},
      /at least 0 for tensors\[0\]\.shape but received the number -1/,
    ],
    [
      "a fraction",
      [{ ...a, shape: [0.5] }],
      {},
      /at least 0 for tensors\[0\]\.shape but received the number 0\.5/,
    ],
    ["a shape beyond 2^53", [{ ...a, shape: [2 ** 30, 2 ** 30] }], {}, /too large/],
    ["an unknown dtype", [{ ...a, dtype: "F31" as never }], {}, /\.dtype but received "F31"/],
    [
      "a dtype from Object.prototype",
      [{ ...a, dtype: "toString" as never }],
      {},
      /\.dtype but received "toString"/,
    ],
  ])("%s", async (_what, tensors, metadata, message) => {
    await expect(writeSafetensors(path, tensors, metadata)).rejects.toThrow(message);
  });

  test("a name that is taken", async () => {
    writeFileSync(path, "precious");
    await expect(writeSafetensors(path, [a])).rejects.toThrow(/EEXIST/);
    await expect(writeSafetensors(path, [a])).rejects.toBeInstanceOf(CheckpointError);
    expect(readFileSync(path, "utf8")).toBe("precious");
    await expect(writeSafetensors(join(folder.path, "no", "x"), [a])).rejects.toThrow(/ENOENT/);
    expect(existsSync(join(folder.path, "no"))).toBe(false);
  });
});

describe("reading into tensors", () => {
  async function load(dtype: FileDtype, content: ArrayBufferView, into: DType): Promise<number[]> {
    const bytes = new Uint8Array(content.buffer, content.byteOffset, content.byteLength);
    const shape = [bytes.length / fileDtypeBytes[dtype]];
    const file = join(folder.path, `${dtype}-${into}`);
    const lead = {
      name: "lead",
      dtype: "U8",
      shape: [8],
      bytes: () => new Uint8Array(8).fill(255),
    } as const;
    await writeSafetensors(file, [{ name: "x", dtype, shape, bytes: () => bytes }, lead]);
    const tensor = new addon.NativeTensor(0, into, shape);
    try {
      (await readSafetensors(file)).tensors.get("x")?.readInto(tensor);
      const got = await tensor.read();
      if (into === "i32") return [...new Int32Array(got)];
      if (into === "f32") return [...new Float32Array(got)];
      const wide = Uint32Array.from(new Uint16Array(got), (bits) => bits << 16);
      return [...new Float32Array(wide.buffer)];
    } finally {
      tensor.dispose();
    }
  }

  const values = [0, -0, 1, -1.5, 65504, -65504, 6.103515625e-5, 2 ** -24];
  const special = [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY];
  const f16 = Uint16Array.of(
    ...[0, 0x8000, 0x3c00, 0xbe00, 0x7bff, 0xfbff, 0x0400, 0x0001, 0x7e00, 0x7c00, 0xfc00],
  );

  test("F16, every kind of value, exactly", async () => {
    expect(await load("F16", f16, "f32")).toEqual([...values, ...special]);
  });

  test("all 65536 F16 values against their definition", async () => {
    const all = Uint16Array.from({ length: 65536 }, (_, bits) => bits);
    const got = await load("F16", all, "f32");
    for (const bits of all) {
      const sign = bits & 0x8000 ? -1 : 1;
      const exponent = (bits >> 10) & 31;
      const mantissa = bits & 1023;
      const wanted =
        exponent === 31
          ? mantissa === 0
            ? sign * Number.POSITIVE_INFINITY
            : Number.NaN
          : exponent === 0
            ? sign * mantissa * 2 ** -24
            : sign * (1 + mantissa / 1024) * 2 ** (exponent - 15);
      if (!Object.is(got[bits], wanted)) expect([bits, got[bits]]).toEqual([bits, wanted]);
    }
  });

  test("F32 and F64 into f32, rounded to nearest even", async () => {
    const f32 = Float32Array.of(...values, ...special);
    expect(await load("F32", f32, "f32")).toEqual([...values, ...special]);
    const f64 = Float64Array.of(...values, ...special, 1 / 3, 1 + 2 ** -24, 1 + 3 * 2 ** -24);
    expect(await load("F64", f64, "f32")).toEqual([...f64].map(Math.fround));
  });

  test("into bf16, rounded to nearest even; BF16 into both", async () => {
    const f32 = Float32Array.of(
      1,
      1 + 2 ** -8,
      1 + 3 * 2 ** -8,
      1 + 2 ** -8 + 2 ** -20,
      ...special,
    );
    const rounded = [1, 1, 1 + 2 ** -6, 1 + 2 ** -7, ...special];
    expect(await load("F32", f32, "bf16")).toEqual(rounded);
    expect(await load("F64", Float64Array.from(f32), "bf16")).toEqual(rounded);
    const bf16 = Uint16Array.of(0x3f80, 0xc000, 0x7f80, 0x0001);
    expect(await load("BF16", bf16, "f32")).toEqual([1, -2, Number.POSITIVE_INFINITY, 2 ** -133]);
    expect(await load("BF16", bf16, "bf16")).toEqual([1, -2, Number.POSITIVE_INFINITY, 2 ** -133]);
  });

  test("I32 and I64 into i32", async () => {
    expect(await load("I32", Int32Array.of(-5, 2147483647), "i32")).toEqual([-5, 2147483647]);
    const i64 = BigInt64Array.of(-2147483648n, 7n, 2147483647n);
    expect(await load("I64", i64, "i32")).toEqual([-2147483648, 7, 2147483647]);
  });

  test.each<[FileDtype, ArrayBufferView, DType, RegExp]>([
    ["I64", BigInt64Array.of(1n, 2147483648n), "i32", /element 1 does not fit into i32/],
    ["I64", BigInt64Array.of(-(2n ** 63n)), "i32", /element 0 does not fit into i32/],
    ["F64", Float64Array.of(0, 0, 1e39), "f32", /element 2 does not fit into f32/],
    ["F32", Float32Array.of(3.38e38, 3.4e38), "bf16", /element 1 does not fit into bf16/],
  ])(
    "a value too large for its target, %s, is an error and not a wrap",
    async (dtype, content, into, message) => {
      await expect(load(dtype, content, into)).rejects.toMatchObject({
        code: "ERR_CHECKPOINT",
        message: expect.stringMatching(message),
      });
      // The device works again after it reported the failure.
      expect(await load("I32", Int32Array.of(1), "i32")).toEqual([1]);
    },
  );

  test.each<[FileDtype, DType]>([
    ["F32", "i32"],
    ["I32", "f32"],
    ["I64", "bf16"],
    ["U8", "i32"],
    ["BOOL", "f32"],
    ["F8_E4M3", "bf16"],
  ])("%s is not read as %s", async (dtype, into) => {
    const size = fileDtypeBytes[dtype];
    await expect(load(dtype, new Uint8Array(size), into)).rejects.toThrow(
      `cannot be read as ${into}`,
    );
  });

  test("another number of elements is refused at once", async () => {
    await writeSafetensors(path, [
      { name: "x", dtype: "F32", shape: [4], bytes: () => new Uint8Array(16) },
    ]);
    const x = (await readSafetensors(path)).tensors.get("x");
    const tensor = new addon.NativeTensor(0, "f32", [5]);
    expect(() => x?.readInto(tensor)).toThrow(/\[5\] of F32 needs 20 bytes, the file has 16/);
    tensor.dispose();
    expect(() => x?.readInto(tensor)).toThrow(/disposed/);
  });

  test("a part of a larger tensor is filled, and nothing beside it", async () => {
    await writeSafetensors(path, [
      {
        name: "x",
        dtype: "F32",
        shape: [2],
        bytes: () => new Uint8Array(Float32Array.of(5, 6).buffer),
      },
    ]);
    const group = new addon.NativeTensor(0, "f32", [4]);
    group.write(Float32Array.of(1, 2, 3, 4));
    (await readSafetensors(path)).tensors.get("x")?.readInto(group.view(1, [2]));
    expect([...new Float32Array(await group.read())]).toEqual([1, 5, 6, 4]);
    group.dispose();
  });
});

test("hashes are those of node's crypto, at every length around the block size", async () => {
  for (const length of [
    0,
    1,
    3,
    55,
    56,
    57,
    63,
    64,
    65,
    119,
    120,
    127,
    128,
    129,
    1000,
    1 << 20,
    3_000_001,
  ]) {
    const content = Uint8Array.from({ length }, (_, i) => (i * 31 + length) % 256);
    const file = join(folder.path, `${length}`);
    writeFileSync(file, content);
    const wanted = createHash("sha256").update(content).digest("hex");
    expect(await io.hashFile(file)).toEqual({ bytes: length, sha256: wanted });
    const durable = new io.DurableFile(`${file}.copy`);
    await durable.open();
    // Uneven pieces, so that blocks span calls.
    for (let at = 0, size = 1; at < length; at += size, size = (size * 7 + 3) % 100_000) {
      await durable.write(content.subarray(at, at + size));
    }
    expect(await durable.finish()).toEqual({ bytes: length, sha256: wanted });
  }
});
