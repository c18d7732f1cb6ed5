// docs/faults.md, row A5: JavaScript memory that is detached, shared, resized or moved is copied at
// once or refused, and never read later.
import { describe, expect, test } from "vitest";
import { tensor, zeros } from "../../lib/core/create.js";
import { addon } from "../../lib/core/native.js";
import { synchronize } from "../../lib/core/runtime.js";
import { freePort } from "../../lib/dist/free-port.js";
import { Store } from "../../lib/dist/store.js";

type Resizable = new (
  size: number,
  options: { maxByteLength: number },
) => ArrayBuffer & {
  resize(size: number): void;
};
const resizable = (size: number, most: number) =>
  new (ArrayBuffer as unknown as Resizable)(size, { maxByteLength: most });

function detached(array: Float32Array): Float32Array {
  structuredClone(array.buffer, { transfer: [array.buffer as ArrayBuffer] });
  return array;
}

describe("a tensor's content", () => {
  const write = (value: unknown) => zeros([4]).native.write(value as Float32Array);

  test("from memory that is gone, shared or none is refused, by name", () => {
    const pulled = resizable(16, 32);
    const outside = new Float32Array(pulled, 8, 2);
    pulled.resize(8);
    for (const [what, value] of [
      ["detached", detached(new Float32Array(4))],
      ["shared", new Float32Array(new SharedArrayBuffer(16))],
      ["out of its buffer's bounds", outside],
      ["an array", [1, 2, 3, 4]],
      ["a buffer", new ArrayBuffer(16)],
      ["a view without a type", new DataView(new ArrayBuffer(16))],
      ["a proxy", new Proxy(new Float32Array(4), {})],
      ["an heir", Object.create(new Float32Array(4))],
    ] as const) {
      expect(() => write(value), what).toThrow(
        expect.objectContaining({ code: expect.stringMatching(/^ERR_(ARGUMENT|SHAPE)$/) }),
      );
    }
  });

  test("is what stood there at the call: what is changed, detached or shrunk later is not seen", async () => {
    const changes: ((array: Float32Array) => void)[] = [
      (array) => void array.fill(-1),
      (array) => void detached(array),
    ];
    for (const change of changes) {
      const source = Float32Array.of(1, 2, 3, 4);
      const x = zeros([4]);
      x.native.write(source);
      change(source);
      expect([...(await x.toArray())]).toEqual([1, 2, 3, 4]);
    }
    const buffer = resizable(16, 16);
    const source = new Float32Array(buffer);
    source.set([1, 2, 3, 4]);
    const x = zeros([4]);
    x.native.write(source);
    buffer.resize(0);
    expect([...(await x.toArray())]).toEqual([1, 2, 3, 4]);
    expect(() => x.native.write(source)).toThrow(/needs 16 bytes, got 0/);
  });

  test("from a part of a larger array, at an offset that no vector register likes", async () => {
    const bytes = new Uint8Array(4 * 1000 + 4);
    const source = new Float32Array(bytes.buffer, 4, 999).map((_, i) => i);
    const view = new Float32Array(bytes.buffer, 4, 999);
    view.set(source);
    expect([...(await tensor(view, { shape: [27, 37] }).toArray())]).toEqual([...source]);
  });

  test("lies that an array tells about itself are not asked for", async () => {
    const liar = Float32Array.of(1, 2, 3, 4);
    Object.defineProperty(liar, "length", { value: 1 << 28 });
    Object.defineProperty(liar, "byteLength", { value: 1 << 30 });
    Object.defineProperty(liar, "buffer", { value: new ArrayBuffer(1) });
    const x = zeros([4]);
    x.native.write(liar);
    expect([...(await x.toArray())]).toEqual([1, 2, 3, 4]);
  });

  test("is as large as the machine allows: 2 GB of it is not too large for a count of bytes", () => {
    const x = zeros([4]).native;
    expect(() => x.write(new Float32Array(2 ** 29))).toThrow(/needs 16 bytes, got 2147483648/);
  });
});

describe("memory that tensors are read into", () => {
  test("keeps a copy alive whatever becomes of its buffer", async () => {
    const x = tensor(Float32Array.from({ length: 1 << 20 }, (_, i) => i));
    for (let round = 0; round < 20; round++) {
      const memory = new addon.HostMemory(4 << 20);
      const copied = x.native.readInto(memory, 0);
      const moved = structuredClone(memory.buffer, { transfer: [memory.buffer] });
      await copied;
      if (memory.buffer.byteLength > 0) continue; // this engine does not move foreign memory
      expect(new Float32Array(moved)[12_345]).toBe(12_345);
    }
    await synchronize();
  });

  test("is refused where it is none, or too small", async () => {
    const x = zeros([4]).native;
    const memory = new addon.HostMemory(16);
    const into = x.readInto.bind(x) as (...args: unknown[]) => Promise<void>;
    for (const args of [
      [memory, 1],
      [memory, -1],
      [memory, 0.5],
      [memory, 2 ** 53],
      [memory, "0"],
      [memory],
      [memory.buffer, 0],
      [new Uint8Array(16), 0],
      [Object.create(memory), 0],
      [new Proxy(memory, {}), 0],
      [x, 0],
      [null, 0],
    ]) {
      expect(() => into(...args)).toThrow(
        expect.objectContaining({ code: expect.stringMatching(/^ERR_(ARGUMENT|SHAPE)$/) }),
      );
    }
    await into(memory, 0);
    for (const size of [0, -1, 1.5, Number.NaN, 2 ** 60, "16", undefined]) {
      expect(() => new addon.HostMemory(size as number)).toThrow(
        expect.objectContaining({ code: "ERR_ARGUMENT" }),
      );
    }
  });
});

test("a value for the ranks' store from memory that is gone or shared is refused, and what it holds stays", async () => {
  const store = await Store.connect({
    rank: 0,
    worldSize: 1,
    host: "127.0.0.1",
    port: await freePort(),
    token: "a05",
    timeoutMs: 30_000,
  });
  try {
    await store.set("key", Uint8Array.of(1, 2));
    const gone = new Uint8Array(4);
    structuredClone(gone.buffer, { transfer: [gone.buffer] });
    const code = expect.objectContaining({ code: "ERR_ARGUMENT" });
    for (const value of [gone, new Uint8Array(new SharedArrayBuffer(4)), Float32Array.of(1)]) {
      await expect((async () => store.set("key", value as Uint8Array))()).rejects.toThrow(code);
    }
    expect([...(await store.get("key", { timeoutMs: 30_000 }))]).toEqual([1, 2]);
  } finally {
    await store.close();
  }
});
