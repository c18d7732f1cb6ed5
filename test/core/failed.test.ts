// The outputs of a failed operation count as never computed, even if the operation wrote part of
// them.
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, describe, expect, test } from "vitest";
import { io } from "../../lib/checkpoint/native-io.js";
import { full, tensor } from "../../lib/core/create.js";
import { NativeError, OutOfMemoryError } from "../../lib/core/errors.js";
import { native } from "../../lib/core/native.js";
import { memory, setMemoryLimit, synchronize } from "../../lib/core/runtime.js";
import { empty, type Tensor } from "../../lib/core/tensor.js";
import { gather } from "../../lib/ops/index.js";
import { settled } from "../support/settled.js";

afterEach(() => setMemoryLimit(0));

/**
 * Reads several times. The first read reports the failure, and no later read may return a value.
 */
async function expectNeverComputed(x: Tensor): Promise<void> {
  for (let i = 0; i < 3; i++) {
    const error = await x.toArray().catch((thrown: unknown) => thrown);
    expect(error).toBeInstanceOf(NativeError);
    expect((error as Error).message).toBe("[read] the tensor was never computed");
  }
}

describe("an operation that fails in its kernel", () => {
  test("its output was never computed, and holds no memory", async () => {
    const [a, b] = [full([64, 64], 1), full([64, 64], 2)];
    await settled();
    const before = memory().bytes;
    const y = empty([64, 64]);
    native.binary(a.native, b.native, y.native, "no such kind");
    await expect(y.toArray()).rejects.toThrow("[binary]");
    expect(memory().bytes).toBe(before);
    await expectNeverComputed(y);
    // The next operation that writes the tensor makes it valid again.
    native.binary(a.native, b.native, y.native, "add");
    expect(new Set(await y.toArray())).toEqual(new Set([3]));
  });

  test("nor was that of one that its data makes fail", async () => {
    const x = tensor([[1, 2, 3]]);
    const index = tensor([[0, 1, 9]], { dtype: "i32" });
    const y = gather(x, index, 1);
    await expect(y.toArray()).rejects.toThrow("[gather] index 9");
    // On a GPU the kernel itself finds the bad id and makes y NaN.
    if (x.device.type === "cuda") expect([...(await y.toArray())]).toEqual([NaN, NaN, NaN]);
    else await expectNeverComputed(y);
  });

  test("a tensor that was computed before keeps its values", async () => {
    const [a, y] = [full([3], 1), full([3], 5)];
    await synchronize();
    native.binary(a.native, a.native, y.native, "no such kind");
    await expect(synchronize()).rejects.toThrow("[binary]");
    expect([...(await y.toArray())]).toEqual([5, 5, 5]);
  });

  test("what was to be computed from it fails as well", async () => {
    const [a, y, z] = [full([3], 1), empty([3]), empty([3])];
    native.binary(a.native, a.native, y.native, "no such kind");
    await expect(synchronize()).rejects.toThrow("[binary]");
    native.binary(y.native, a.native, z.native, "add");
    await expect(synchronize()).rejects.toThrow("[binary] argument 1 was never computed");
    await expectNeverComputed(z);
  });
});

test("a write for which there is no memory", async () => {
  const x = empty([1 << 16]);
  await synchronize();
  setMemoryLimit(memory().bytes + 1024);
  x.native.write(new Float32Array(1 << 16));
  await expect(synchronize()).rejects.toThrow(OutOfMemoryError);
  setMemoryLimit(0);
  await expectNeverComputed(x);
});

test("a file that ends before the tensor does", async () => {
  const folder = mkdtempSync(join(tmpdir(), "llamaforge-failed-"));
  try {
    const path = join(folder, "short");
    writeFileSync(path, new Float32Array(700));
    await settled();
    const before = memory().bytes;
    const x = empty([1024]);
    io.readTensor(path, "", 0, 4096, "F32", x.native, "x", "any");
    await expect(synchronize()).rejects.toThrow("[readTensor]");
    expect(memory().bytes).toBe(before);
    await expectNeverComputed(x);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
});
