import { describe, expect, test } from "vitest";
import * as create from "../../lib/core/create.js";
import { arange, full, ones, tensor, zeros } from "../../lib/core/create.js";
import { cuda, defaultDevice, parseDevice, setDefaultDevice } from "../../lib/core/device.js";
import {
  ArgumentError,
  DeviceError,
  DTypeError,
  OutOfMemoryError,
  ShapeError,
} from "../../lib/core/errors.js";
import { addon, type NativeTensor, native } from "../../lib/core/native.js";
import { nativeOpNames } from "../../lib/core/native-ops.js";
import { memory, reachedAt, setMemoryLimit, synchronize } from "../../lib/core/runtime.js";
import { scope } from "../../lib/core/scope.js";
import { empty, Tensor } from "../../lib/core/tensor.js";
import { add, linear, randn } from "../../lib/ops/index.js";

describe("making tensors", () => {
  test("from nested arrays, typed arrays and bits", async () => {
    expect([
      ...(await tensor([
        [1, 2],
        [3, 4.5],
      ]).toArray()),
    ]).toEqual([1, 2, 3, 4.5]);
    expect(
      tensor([
        [1, 2],
        [3, 4],
      ]).shape,
    ).toEqual([2, 2]);
    expect(tensor(7).shape).toEqual([]);
    expect(await tensor(7).item()).toBe(7);
    const ids = tensor(Int32Array.of(1, -2, 3));
    expect([ids.dtype, ...(await ids.toArray())]).toEqual(["i32", 1, -2, 3]);
    const rounded = tensor([1.00390625, 3e38, Number.NaN, -0], { dtype: "bf16" });
    const values = await rounded.toArray();
    expect([values[0], Number.isNaN(values[2]), Object.is(values[3], -0)]).toEqual([1, true, true]);
    expect([...(await tensor(Uint16Array.of(0x3f80), { dtype: "bf16" }).toArray())]).toEqual([1]);
    expect([...(await arange(4, { start: 2, step: 3 }).toArray())]).toEqual([2, 5, 8, 11]);
  });

  test("refuses what does not fit, and says what would", () => {
    expect(() => tensor([[1, 2], [3]])).toThrow(
      /axis 1 has 2 elements in one place and 1 in another/,
    );
    expect(() => tensor([[1], 2] as never)).toThrow(ShapeError);
    expect(() => tensor([1, 2], { shape: [3] })).toThrow(/\[3\] needs 3 numbers, got 2/);
    expect(() => tensor([1.5], { dtype: "i32" })).toThrow(/element 0 is 1.5/);
    expect(() => tensor([2 ** 31], { dtype: "i32" })).toThrow(ArgumentError);
    expect(() => tensor(["1"] as never)).toThrow(ArgumentError);
    expect(() => tensor([1], { dtype: "f64" as never })).toThrow(DTypeError);
    expect(() => zeros([2, 0])).toThrow(/at least one element/);
    expect(() => zeros([-1])).toThrow(ShapeError);
    expect(() => zeros([1.5])).toThrow(ArgumentError);
    expect(() => zeros([2 ** 30, 2 ** 30])).toThrow(/too large/);
    expect(() => zeros(Array.from({ length: 9 }, () => 1))).toThrow(/at most 8 axes/);
    expect(() => tensor([1], { dtype: "i32", requiresGrad: true })).toThrow(DTypeError);
    expect(() => full([1], "1" as never)).toThrow(ArgumentError);
  });

  test("refuses options that it does not know, or of another type", () => {
    const any = (value: unknown) => value as never;
    const makers: [string, (options: never) => Tensor][] = [
      ["zeros", (options) => zeros([2], options)],
      ["ones", (options) => ones([2], options)],
      ["full", (options) => full([2], 1, options)],
      ["arange", (options) => arange(2, options)],
      ["tensor", (options) => tensor([1, 2], options)],
    ];
    for (const [name, make] of makers) {
      expect(() => make(any({ requiresGrad: "no" }))).toThrow(
        `[${name}] expected true or false for requiresGrad but received "no"`,
      );
      expect(() => make(any({ dtyp: "bf16" }))).toThrow(/options among .* but received "dtyp"/);
      expect(() => make(any({ device: "cpu" }))).toThrow(
        `[${name}] expected a device (cpu, cuda(0), parseDevice("cuda:0")) for device but received "cpu"`,
      );
      expect(() => make(any({ device: { type: "tpu", index: 0 } }))).toThrow(ArgumentError);
      expect(() => make(any(null))).toThrow(ArgumentError);
      expect(() => make(any({ dtype: "i32", requiresGrad: true }))).toThrow(DTypeError);
    }
    expect(() => arange(2, any({ start: "1" }))).toThrow(/a finite number for start/);
    expect(() => create.empty([2], any({ requiresGrad: true }))).toThrow(ArgumentError);
    expect(() => create.empty([2], any({ device: "cpu" }))).toThrow(ArgumentError);
    expect(create.empty([2], zeros([1], { dtype: "bf16" })).dtype).toBe("bf16");
  });

  test("leaves nothing behind when it fails", () => {
    const before = memory().tensors;
    expect(() => tensor([1, 2], { shape: [3] })).toThrow(ShapeError);
    expect(() => tensor([1.5], { dtype: "i32" })).toThrow(ArgumentError);
    expect(() => tensor([1], { dtype: "i32", requiresGrad: true })).toThrow(DTypeError);
    expect(() => full([1], 1.5, { dtype: "i32" })).toThrow(ArgumentError);
    expect(() => arange(2, { start: 0.5 })).toThrow(ArgumentError);
    expect(() => tensor(new Float32Array(new SharedArrayBuffer(8)))).toThrow();
    expect(memory().tensors).toBe(before);
  });

  test("requiresGrad can be set on floats alone", () => {
    const x = zeros([2]);
    x.requiresGrad = true;
    expect(x.requiresGrad).toBe(true);
    const ids = arange(2);
    expect(() => {
      ids.requiresGrad = true;
    }).toThrow(DTypeError);
    expect(() => {
      x.requiresGrad = 1 as never;
    }).toThrow(ArgumentError);
    expect([x.requiresGrad, ids.requiresGrad]).toEqual([true, false]);
  });

  test("the default device is a device, not the name of one", () => {
    const before = defaultDevice();
    for (const value of ["cuda", "cpu", null, {}, { type: "cuda" }, { type: "cpu", index: 1 }]) {
      expect(() => setDefaultDevice(value as never)).toThrow(ArgumentError);
    }
    expect(defaultDevice()).toBe(before);
    expect(() => memory("cpu" as never)).toThrow(/^\[memory\] expected a device .* received "cpu"/);
    expect(() => setMemoryLimit(0, "cpu" as never)).toThrow(ArgumentError);
    expect(() => randn([2], { seed: 1, device: "cpu" as never })).toThrow(ArgumentError);
  });

  test("refuses typed arrays whose memory is gone or shared (docs/faults.md A5)", () => {
    const detached = Float32Array.of(1, 2);
    structuredClone(detached.buffer, { transfer: [detached.buffer] });
    expect(() => tensor(detached, { shape: [2] })).toThrow();
    const shared = new Float32Array(new SharedArrayBuffer(8));
    expect(() => tensor(shared)).toThrow(/not shared/);
  });

  test("copies: a later change of the array is not seen", async () => {
    const data = Float32Array.of(1, 2, 3);
    const x = tensor(data);
    data.fill(9);
    expect([...(await x.toArray())]).toEqual([1, 2, 3]);
  });

  test("an offset view of a larger array is read at its place", async () => {
    const part = new Float32Array(Float32Array.of(0, 1, 2, 3).buffer, 4, 2);
    expect([...(await tensor(part).toArray())]).toEqual([1, 2]);
  });

  test("views share memory and stay within it", async () => {
    const x = tensor([0, 1, 2, 3, 4, 5]);
    expect([...(await x.view([2, 2], 1).toArray())]).toEqual([1, 2, 3, 4]);
    expect(() => x.view([2, 3], 1)).toThrow(ShapeError);
    expect(() => x.view([2], -1)).toThrow(ShapeError);
  });
});

describe("foreign objects (docs/faults.md A4)", () => {
  const x = zeros([2]);
  const impostors: [string, unknown][] = [
    ["a plain object", { shape: [2], dtype: "f32", native: x.native }],
    ["an heir", Object.create(x)],
    ["a proxy", new Proxy(x, {})],
    ["the prototype", Tensor.prototype],
    ["null", null],
    ["a string", "x"],
  ];
  test.each(impostors)("%s is not taken for a tensor", (_, impostor) => {
    expect(() => add(impostor as Tensor, x)).toThrow(ArgumentError);
    expect(() => linear(x, impostor as Tensor)).toThrow(ArgumentError);
  });

  test("natively: no object but the addon's own is unwrapped", () => {
    for (const value of [
      {},
      Object.create(x.native),
      new Proxy(x.native, {}),
      null,
      1,
      "x",
      Symbol("x"),
    ]) {
      expect(() => native.fill(value as NativeTensor, 1)).toThrow(
        /expected a tensor for argument 1/,
      );
    }
    const view = (addon.NativeTensor.prototype as NativeTensor).view;
    expect(() => view.call({} as NativeTensor, 0, [1])).toThrow();
  });
});

describe("native arguments (docs/faults.md A1)", () => {
  const x = zeros([2]);
  test.each(nativeOpNames)("%s refuses a wrong number of arguments", (name) => {
    expect(() => (native[name] as () => void)()).toThrow(/expected \d+ arguments, got 0/);
    const many = Array.from({ length: 20 }, () => x.native) as never[];
    expect(() => (native[name] as (...args: never[]) => void)(...many)).toThrow(
      /expected \d+ arguments, got 20/,
    );
  });

  test("whole numbers are not coerced", () => {
    for (const value of [
      1.5,
      Number.NaN,
      Number.POSITIVE_INFINITY,
      2 ** 53,
      "1",
      true,
      1n,
      null,
      undefined,
      {},
    ]) {
      expect(() => native.gather(x.native, x.native, x.native, value as number)).toThrow(
        /whole number/,
      );
    }
    const getter = { valueOf: () => 1 } as unknown as number;
    expect(() => native.fill(x.native, getter)).toThrow(
      /expected a number for argument 2 but received object/,
    );
    expect(() => native.softmax(x.native, x.native, 1 as unknown as boolean)).toThrow(/boolean/);
    expect(() => native.permute(x.native, x.native, [0, 1.5])).toThrow(/whole number/);
    expect(() => native.permute(x.native, x.native, "0" as never)).toThrow(/array/);
  });
});

describe("asynchronous errors", () => {
  test("surface at the next wait with the operation's name; then the device works again", async () => {
    const bad = empty([3]);
    native.cast(zeros([2]).native, bad.native);
    const after = add(full([2], 1), 1);
    await expect(bad.toArray()).rejects.toThrow(/^\[cast\]/);
    // Operations after the failure do not run. Their results are errors and not garbage.
    await expect(after.toArray()).rejects.toThrow(/never computed/);
    expect(await add(full([], 1), 1).item()).toBe(2);
    await expect(empty([2]).toArray()).rejects.toThrow(/never computed/);
    await synchronize();
  });

  test("out of memory names need, limit and cure, and frees nothing that lives (docs/faults.md K4)", async () => {
    const x = full([1000], 2);
    await synchronize();
    setMemoryLimit(memory().bytes + (1 << 20));
    try {
      const large = zeros([1 << 20]);
      await expect(large.toArray()).rejects.toThrow(OutOfMemoryError);
      const again = zeros([1 << 20]);
      await expect(again.toArray()).rejects.toThrow(
        /\[fill\] no memory for f32 of shape \[1048576\].*micro-batch/,
      );
      expect((await x.toArray())[999]).toBe(2);
    } finally {
      setMemoryLimit(0);
    }
    expect((await zeros([1 << 20]).toArray()).length).toBe(1 << 20);
  });
});

describe("devices", () => {
  test("a GPU that cannot be used is an error, never a silent run on the CPU", () => {
    expect(parseDevice("cpu").type).toBe("cpu");
    for (const name of ["gpu", "cuda:", "cuda:-1", "CPU", ""])
      expect(() => parseDevice(name)).toThrow(DeviceError);
    expect(() => zeros([1], { device: cuda(99) })).toThrow(DeviceError);
  });
});

test("ten thousand steps of a small loop leave nothing behind (docs/faults.md A8)", async () => {
  const w = tensor([0.5, -0.25, 0.125, 1], { shape: [2, 2], requiresGrad: true });
  const x = tensor([1, 2], { shape: [1, 2] });
  const once = async (): Promise<void> => {
    using _ = scope();
    linear(x, w).backward({ gradient: tensor([1, 1], { shape: [1, 2] }) });
  };
  for (let i = 0; i < 1000; i++) await once();
  await synchronize();
  const before = { ...memory(), rss: process.memoryUsage.rss() };
  for (let i = 0; i < 10_000; i++) {
    await once();
    if (i % 100 === 0) await synchronize();
  }
  await synchronize();
  // V8 may collect tensors of earlier tests meanwhile, so the counts may fall.
  expect(memory().tensors).toBeLessThanOrEqual(before.tensors);
  expect(memory().bytes).toBeLessThanOrEqual(before.bytes);
  expect(process.memoryUsage.rss() - before.rss).toBeLessThan(32 << 20);
});

test("when the device got there is its own time, however late JS comes round", async () => {
  await synchronize();
  const begun = performance.now();
  add(ones([8]), 1);
  const pending = reachedAt(defaultDevice());
  while (performance.now() - begun < 1000);
  const at = await pending;
  expect(at).toBeGreaterThan(begun);
  expect(at - begun).toBeLessThan(900);
});
