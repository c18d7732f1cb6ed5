// docs/faults.md, row A7: a failure inside a native call, at every entry of ops.def, is a typed
// error with a code and the operation's name. Nothing crashes or leaks, and the device continues to
// work.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { afterEach, describe, expect, test } from "vitest";
import { full } from "../../lib/core/create.js";
import { LlamaForgeError, NativeError, OutOfMemoryError } from "../../lib/core/errors.js";
import { addon, native, typedNativeError } from "../../lib/core/native.js";
import { memory, setMemoryLimit, synchronize } from "../../lib/core/runtime.js";
import { empty, type Tensor } from "../../lib/core/tensor.js";
import { root } from "../cli/build.js";

interface Entry {
  name: string;
  types: string[];
}

const entries: Entry[] = readFileSync(join(root, "csrc/ops/ops.def"), "utf8")
  .split("\n")
  .flatMap((line) => {
    const match = /^LF_OP\((\w+), \(Stream& stream, (.+)\)\)$/.exec(line);
    if (!match) return [];
    const name = (match[1] as string).replace(/_(\w)/g, (_, letter) => letter.toUpperCase());
    const types = (match[2] as string).split(", ").map((argument) => argument.split(" ")[0]);
    return [{ name, types: types as string[] }];
  });
const isTensor = (type: string) => /^(std::optional<)?(In|Out|InOut)>?$/.test(type);
const plain: Record<string, unknown> = {
  double: 0.5,
  int64_t: 1,
  bool: false,
  "std::string": "add",
  IntList: [0],
};

function call({ name }: Entry, args: unknown[]): void {
  (native as unknown as Record<string, (...args: unknown[]) => void>)[name]?.(...args);
}

/** Waits for the device. @returns the failure that the library reports, or null */
async function failure(): Promise<Error | null> {
  return await synchronize().then(
    () => null,
    (error: Error) => error,
  );
}

async function expectWorking(): Promise<void> {
  const x = full([3], 2);
  expect([...(await x.toArray())]).toEqual([2, 2, 2]);
  x.dispose();
}

afterEach(() => setMemoryLimit(0));

describe.each(entries)("$name", (entry) => {
  const { name, types } = entry;
  const made: Tensor[] = [];
  const keep = (tensor: Tensor) => {
    made.push(tensor);
    return tensor.native;
  };
  afterEach(() => {
    for (const tensor of made.splice(0)) tensor.dispose();
  });

  test.runIf(types.some((type) => /^(In|InOut)$/.test(type)))(
    "an input that nothing computed",
    async () => {
      call(
        entry,
        types.map((type) => (isTensor(type) ? keep(empty([2])) : plain[type])),
      );
      const error = await failure();
      expect(error).toBeInstanceOf(NativeError);
      expect(error?.message).toMatch(new RegExp(`^\\[${name}\\] argument \\d+ was never computed`));
      await expectWorking();
    },
  );

  test.runIf(types.includes("Out"))("no memory for an output", async () => {
    const before = memory();
    const args = types.map((type) => {
      if (!isTensor(type)) return plain[type];
      return keep(type === "Out" ? empty([1 << 16]) : full([2], 1));
    });
    await synchronize();
    setMemoryLimit(memory().bytes + 1024);
    call(entry, args);
    const error = await failure();
    setMemoryLimit(0);
    expect(error).toBeInstanceOf(OutOfMemoryError);
    expect(error?.message).toMatch(
      new RegExp(`^\\[${name}\\] no memory for f32 of shape \\[65536\\]`),
    );
    await expectWorking();
    for (const tensor of made.splice(0)) tensor.dispose();
    await synchronize();
    expect(memory().bytes).toBe(before.bytes);
    expect(memory().tensors).toBe(before.tensors);
  });

  test("arguments of the right types that fit nothing", async () => {
    const sizes = fc.array(fc.integer({ min: 1, max: 5 }), { maxLength: 4 });
    const number = fc.constantFrom(0, 1, -1, 2, 3, 7, 2 ** 31, -(2 ** 31), 2 ** 53 - 1);
    const values: Record<string, fc.Arbitrary<unknown>> = {
      double: fc.constantFrom(0, 1, -1, 0.5, Number.NaN, Number.POSITIVE_INFINITY, 1e308, -1e-308),
      int64_t: number,
      bool: fc.boolean(),
      "std::string": fc.constantFrom("add", "sum", "exp", "silu", "", "nonsense"),
      IntList: fc.array(number, { maxLength: 4 }),
    };
    const tensor = fc.record({
      shape: sizes,
      dtype: fc.constantFrom("f32" as const, "bf16" as const, "i32" as const),
      value: fc.constantFrom(0, 1, -1, 7, 1e9),
    });
    const argument = (type: string) => {
      if (!isTensor(type)) return values[type] as fc.Arbitrary<unknown>;
      return type.startsWith("std::optional") ? fc.option(tensor) : tensor;
    };
    type Made = { shape: number[]; dtype: "f32" | "bf16" | "i32"; value: number };
    let refused = 0;
    await fc.assert(
      fc.asyncProperty(fc.tuple(...types.map(argument)), async (args) => {
        let thrown: unknown = null;
        try {
          call(
            entry,
            args.map((value, index) => {
              if (!isTensor(types[index] as string) || value === null) return value;
              const { shape, dtype, value: content } = value as Made;
              return keep(full(shape, content, { dtype }));
            }),
          );
        } catch (error) {
          thrown = typedNativeError(error);
        }
        thrown ??= await failure();
        if (thrown !== null) {
          refused++;
          expect(thrown).toBeInstanceOf(LlamaForgeError);
          expect((thrown as LlamaForgeError).code).toMatch(/^ERR_/);
          expect((thrown as Error).message).toContain(`[${name}]`);
        }
        for (const tensor of made.splice(0)) tensor.dispose();
      }),
      { numRuns: 60, seed: 7 },
    );
    if (types.filter(isTensor).length > 2) expect(refused).toBeGreaterThan(20);
    await expectWorking();
  });
});

test("memory that the host does not have is an error with a code", async () => {
  expect(() => new addon.HostMemory(2 ** 46)).toThrow(
    expect.objectContaining({ code: "ERR_OUT_OF_MEMORY" }),
  );
  const huge = empty([2 ** 23, 2 ** 23]);
  native.fill(huge.native, 1);
  await expect(synchronize()).rejects.toThrow(/^\[fill\] no memory for f32 .* refused/);
  huge.dispose();
  await expectWorking();
});
