/**
 * docs/faults.md, rows A2 to A4, for the plain operations: every wrong call is a typed error and
 * changes nothing.
 */
import { describe, expect, it } from "vitest";
import * as create from "../../lib/core/create.js";
import {
  ArgumentError,
  DisposedError,
  DTypeError,
  type LlamaForgeError,
  ShapeError,
} from "../../lib/core/errors.js";
import { memory } from "../../lib/core/runtime.js";
import { scope } from "../../lib/core/scope.js";
import { type DType, Tensor } from "../../lib/core/tensor.js";
import * as binary from "../../lib/ops/binary.js";
import { broadcastTo } from "../../lib/ops/broadcast.js";
import * as compare from "../../lib/ops/compare.js";
import { gather } from "../../lib/ops/gather.js";
import { linear } from "../../lib/ops/linear.js";
import { matmul } from "../../lib/ops/matmul.js";
import * as reductions from "../../lib/ops/reduce.js";
import * as shapes from "../../lib/ops/shape.js";
import * as slices from "../../lib/ops/slice.js";
import { logSoftmax, softmax } from "../../lib/ops/softmax.js";
import * as unary from "../../lib/ops/unary.js";
import { where } from "../../lib/ops/where.js";

type Call = (x: Tensor) => unknown;

const publicOnes = (module: object, names: string): [string, (...args: never[]) => unknown][] =>
  names.split(" ").map((name) => {
    const op = (module as Record<string, unknown>)[name];
    if (typeof op !== "function") throw new Error(`no operation ${name}`);
    return [name, op as (...args: never[]) => unknown];
  });

/** Arguments of the calls. `errorOf` frees them. */
const given: Tensor[] = [];

const argument =
  <T extends unknown[]>(make: (...args: T) => Tensor) =>
  (...args: T): Tensor => {
    const x = make(...args);
    given.push(x);
    return x;
  };
const ones = argument(create.ones);
const tensor = argument(create.tensor);

const one = (x: unknown) => x as never;
const unaryNames =
  "neg abs exp log sqrt rsqrt square reciprocal tanh sigmoid silu gelu relu sin cos";

/** Every tensor argument of an operation: it gets `x` of shape [2,3], and the others are valid. */
const places: [place: string, call: Call, dtypes: DType[]][] = [
  ...publicOnes(unary, unaryNames).map(([name, op]): [string, Call, DType[]] => [
    `${name}(x)`,
    (x) => op(one(x)),
    ["neg", "abs", "square", "relu"].includes(name) ? ["f32", "bf16", "i32"] : ["f32", "bf16"],
  ]),
  ...[
    ...publicOnes(binary, "add sub mul div minimum maximum pow"),
    ...publicOnes(compare, "eq ne lt le gt ge"),
  ].flatMap(([name, op]): [string, Call, DType[]][] => {
    const dtypes: DType[] =
      name === "div" || name === "pow" ? ["f32", "bf16"] : ["f32", "bf16", "i32"];
    return [
      [`${name}(x, 2)`, (x) => op(one(x), one(2)), dtypes],
      [`${name}(2, x)`, (x) => op(one(2), one(x)), dtypes],
      [`${name}(x, f32)`, (x) => op(one(x), one(ones([3]))), ["f32"]],
      [`${name}(f32, x)`, (x) => op(one(ones([3])), one(x)), ["f32"]],
    ];
  }),
  ...publicOnes(reductions, "sum mean max min").map(([name, op]): [string, Call, DType[]] => [
    `${name}(x, 1)`,
    (x) => op(one(x), one(1)),
    name === "mean" ? ["f32", "bf16"] : ["f32", "bf16", "i32"],
  ]),
  ["where(x, 1, 2)", (x) => where(x, 1, 2), ["i32"]],
  ["where(c, x, f32)", (x) => where(ones([3], { dtype: "i32" }), x, ones([3])), ["f32"]],
  ["where(c, f32, x)", (x) => where(ones([3], { dtype: "i32" }), ones([3]), x), ["f32"]],
  ["broadcastTo(x)", (x) => broadcastTo(x, [4, 2, 3]), ["f32", "bf16", "i32"]],
  ["reshape(x)", (x) => shapes.reshape(x, [6]), ["f32", "bf16", "i32"]],
  ["squeeze(x)", (x) => shapes.squeeze(x), ["f32", "bf16", "i32"]],
  ["unsqueeze(x)", (x) => shapes.unsqueeze(x, 0), ["f32", "bf16", "i32"]],
  ["permute(x)", (x) => shapes.permute(x, [1, 0]), ["f32", "bf16", "i32"]],
  ["transpose(x)", (x) => shapes.transpose(x), ["f32", "bf16", "i32"]],
  ["slice(x)", (x) => slices.slice(x, { 0: [1] }), ["f32", "bf16", "i32"]],
  ["split(x)", (x) => slices.split(x, 1), ["f32", "bf16", "i32"]],
  ["concat([f32, x])", (x) => slices.concat([ones([1, 3]), x]), ["f32"]],
  ["stack([x, f32])", (x) => slices.stack([x, ones([2, 3])]), ["f32"]],
  ["gather(x, i)", (x) => gather(x, tensor([[0, 1]], { dtype: "i32" }), 1), ["f32", "bf16", "i32"]],
  ["gather(f32, x)", (x) => gather(ones([9, 9]), x, 1), ["i32"]],
  ["softmax(x)", (x) => softmax(x), ["f32", "bf16"]],
  ["logSoftmax(x)", (x) => logSoftmax(x), ["f32", "bf16"]],
];

const make = (dtype: DType) =>
  tensor(
    [
      [1, 0, 1],
      [0, 1, 1],
    ],
    { dtype },
  );

/**
 * The error of a call outside any scope. Also checks that only the arguments are left as tensors.
 */
function errorOf(call: () => unknown): LlamaForgeError {
  const before = memory().tensors;
  const earlier = given.length;
  let caught: unknown;
  try {
    call();
  } catch (error) {
    caught = error;
  }
  for (const x of given.splice(earlier)) x.dispose();
  if (caught === undefined) throw new Error("the call did not fail");
  expect(memory().tensors).toBe(before);
  return caught as LlamaForgeError;
}

describe.each(places)("%s", (place, call, dtypes) => {
  const op = place.slice(0, place.indexOf("("));

  it("works with what it takes", () => {
    for (const dtype of dtypes) scope(() => call(make(dtype)));
  });

  it("refuses every other dtype with both names", () => {
    for (const dtype of (["f32", "bf16", "i32"] as const).filter(
      (other) => !dtypes.includes(other),
    )) {
      const error = errorOf(() => call(make(dtype)));
      expect(error, dtype).toBeInstanceOf(DTypeError);
      expect(error.message).toMatch(new RegExp(`^\\[${op}\\] expected .* received .*${dtype}`));
    }
  });

  it("refuses a disposed tensor and names the operation that made it", () => {
    const error = errorOf(() => {
      const x = make(dtypes[0] as DType);
      x.dispose();
      x.dispose();
      call(x);
    });
    expect(error).toBeInstanceOf(DisposedError);
    expect(error.message).toMatch(
      new RegExp(`^\\[${op}\\] a tensor of shape \\[2,3\\] made by tensor has been disposed`),
    );
  });

  it("refuses everything that is not a tensor of this library", () => {
    const real = make(dtypes[0] as DType);
    const strangers: unknown[] = [
      undefined,
      null,
      true,
      "1",
      10n,
      Symbol("x"),
      () => real,
      {},
      [],
      [1, 2],
      new Float32Array(6),
      { ...real },
      { shape: [2, 3], dtype: "f32", native: real.native },
      Object.create(real),
      Object.create(Tensor.prototype),
      new Proxy(real, {}),
      {
        get shape() {
          throw new Error("a getter ran");
        },
      },
      {
        valueOf: () => 1,
        toString: () => {
          throw new Error("toString ran");
        },
      },
    ];
    for (const stranger of strangers) {
      const error = errorOf(() => call(stranger as Tensor));
      expect(error).toBeInstanceOf(ArgumentError);
      expect(error.code).toBe("ERR_ARGUMENT");
      expect(error.message).toMatch(
        new RegExp(`^\\[${op}\\] expected a tensor for .* but received `),
      );
    }
    real.dispose();
  });
});

const x = () => ones([2, 3]);
const any = (value: unknown) => value as never;
const index = (shape: number[]) => ones(shape, { dtype: "i32" });

describe.each<[string, () => unknown, new (...args: never[]) => LlamaForgeError, string]>([
  [
    "add",
    () => binary.add(x(), ones([4])),
    ShapeError,
    "[add] shapes [2,3] and [4] do not broadcast: axis 1 is 3 and 4",
  ],
  [
    "pow",
    () => binary.pow(ones([2, 3]), ones([3, 3])),
    ShapeError,
    "[pow] shapes [2,3] and [3,3] do not broadcast: axis 0 is 2 and 3",
  ],
  [
    "lt",
    () => compare.lt(x(), ones([2])),
    ShapeError,
    "[lt] shapes [2,3] and [2] do not broadcast: axis 1 is 3 and 2",
  ],
  [
    "add of two numbers",
    () => binary.add(any(1), any(2)),
    ArgumentError,
    "[add] expected a tensor for a or b but received the number 1",
  ],
  [
    "add of a fraction to i32",
    () => binary.add(index([2]), 0.5),
    ArgumentError,
    "[add] expected a whole number of 32 bits (the tensor is i32) for b but received the number 0.5",
  ],
  [
    "mul of 2^31 and i32",
    () => binary.mul(2 ** 31, index([2])),
    ArgumentError,
    "[mul] expected a whole number of 32 bits (the tensor is i32) for a but received the number 2147483648",
  ],
  [
    "eq of NaN and i32",
    () => compare.eq(index([2]), Number.NaN),
    ArgumentError,
    "[eq] expected a whole number of 32 bits (the tensor is i32) for b but received the number NaN",
  ],
  [
    "add of f32 and bf16",
    () => binary.add(x(), ones([3], { dtype: "bf16" })),
    DTypeError,
    "[add] expected tensors of one dtype but received f32 and bf16: convert one with cast(x, dtype)",
  ],
  [
    "where",
    () => where(index([2, 3]), ones([4]), 0),
    ShapeError,
    "[where] shapes [2,3] and [4] do not broadcast: axis 1 is 3 and 4",
  ],
  [
    "where with a number",
    () => where(index([2, 3]), 0, ones([4])),
    ShapeError,
    "[where] shapes [2,3] and [4] do not broadcast: axis 1 is 3 and 4",
  ],
  [
    "where with a fraction",
    () => where(index([2, 3]), index([3]), 0.5),
    ArgumentError,
    "[where] expected a whole number of 32 bits (the tensor is i32) for b but received the number 0.5",
  ],
  [
    "matmul of other inner sizes",
    () => matmul(x(), x()),
    ShapeError,
    "[matmul] shapes [2,3] and [2,3] do not multiply: inner sizes 3 and 2 differ",
  ],
  [
    "matmul of other batches",
    () => matmul(ones([2, 2, 3]), ones([3, 3, 2])),
    ShapeError,
    "[matmul] shapes [2] and [3] do not broadcast: axis 0 is 2 and 3",
  ],
  [
    "a vector through linear",
    () => linear(ones([4]), x()),
    ShapeError,
    "[linear] expected shape [any,4] for weight (last axis of x [4]) but received [2,3]",
  ],
  [
    "broadcastTo fewer axes",
    () => broadcastTo(x(), [3]),
    ShapeError,
    "[broadcastTo] shape [2,3] does not broadcast to [3]",
  ],
  [
    "broadcastTo another size",
    () => broadcastTo(x(), [2, 4]),
    ShapeError,
    "[broadcastTo] shape [2,3] does not broadcast to [2,4]",
  ],
  [
    "broadcastTo nothing",
    () => broadcastTo(x(), [0, 2, 3]),
    ArgumentError,
    "[broadcastTo] expected an array of at most 8 positive integers for shape but received [0,2,3]",
  ],
  [
    "sum over an axis too many",
    () => reductions.sum(x(), 2),
    ArgumentError,
    "[sum] expected an axis from -2 to 1 for axes but received the number 2",
  ],
  [
    "sum over half an axis",
    () => reductions.sum(x(), 0.5),
    ArgumentError,
    "[sum] expected an axis from -2 to 1 for axes but received the number 0.5",
  ],
  [
    "sum over an axis twice",
    () => reductions.sum(x(), [1, -1]),
    ArgumentError,
    "[sum] expected axes that are all different for axes but received [1,-1]",
  ],
  [
    "sum over no axis",
    () => reductions.sum(x(), []),
    ArgumentError,
    "[sum] expected at least one axis (leave axes out to reduce all) for axes but received []",
  ],
  [
    "sum over null",
    () => reductions.sum(x(), any(null)),
    ArgumentError,
    "[sum] expected an axis from -2 to 1 for axes but received null",
  ],
  [
    "max with a wrong option",
    () => reductions.max(x(), 0, any({ keepdim: true })),
    ArgumentError,
    '[max] expected options among keepDims but received "keepdim"',
  ],
  [
    "max with options of true",
    () => reductions.max(x(), 0, any(true)),
    ArgumentError,
    "[max] expected an object for options but received true",
  ],
  [
    "max with keepDims of 1",
    () => reductions.max(x(), 0, any({ keepDims: 1 })),
    ArgumentError,
    "[max] expected true or false for keepDims but received the number 1",
  ],
  [
    "reshape to another size",
    () => shapes.reshape(x(), [4]),
    ShapeError,
    "[reshape] shape [2,3] has 6 elements and cannot become [4]",
  ],
  [
    "reshape to what does not divide",
    () => shapes.reshape(x(), [4, -1]),
    ShapeError,
    "[reshape] shape [2,3] has 6 elements and cannot become [4,-1]",
  ],
  [
    "reshape with two open sizes",
    () => shapes.reshape(x(), [-1, -1]),
    ArgumentError,
    "[reshape] expected an array of at most 8 positive integers, one of which may be -1 for shape but received [-1,-1]",
  ],
  [
    "reshape to nine axes",
    () => shapes.reshape(x(), [1, 1, 1, 1, 1, 1, 1, 1, 6]),
    ArgumentError,
    "[reshape] expected an array of at most 8",
  ],
  [
    "reshape to a number",
    () => shapes.reshape(x(), any(6)),
    ArgumentError,
    "[reshape] expected an array of at most 8",
  ],
  [
    "unsqueeze beyond",
    () => shapes.unsqueeze(x(), 3),
    ArgumentError,
    "[unsqueeze] expected an axis from -3 to 2 for axis but received the number 3",
  ],
  [
    "a ninth axis",
    () => shapes.unsqueeze(ones([1, 1, 1, 1, 1, 1, 1, 1]), 0),
    ShapeError,
    "[unsqueeze] [1,1,1,1,1,1,1,1] has 8 axes already",
  ],
  [
    "permute twice the same",
    () => shapes.permute(x(), [0, 0]),
    ArgumentError,
    "[permute] expected each of the 2 axes once for permutation but received [0,0]",
  ],
  [
    "permute too few",
    () => shapes.permute(x(), [0]),
    ArgumentError,
    "[permute] expected each of the 2 axes once for permutation but received [0]",
  ],
  [
    "transpose of one axis",
    () => shapes.transpose(ones([3])),
    ArgumentError,
    "[transpose] expected an axis from -1 to 0 for axis1 but received the number -2",
  ],
  [
    "transpose of no axis",
    () => shapes.transpose(ones([])),
    ArgumentError,
    "[transpose] expected no axis (the tensor has none) for axis1",
  ],
  [
    "an empty slice",
    () => slices.slice(x(), { 1: [2, 2] }),
    ShapeError,
    "[slice] 2 to 2 is empty along axis 1 of [2,3]; empty tensors do not exist",
  ],
  [
    "a slice beyond the end",
    () => slices.slice(x(), { 1: [3] }),
    ShapeError,
    "[slice] 3 to 3 is empty along axis 1 of [2,3]",
  ],
  [
    "a slice of an axis too many",
    () => slices.slice(x(), { 2: [0, 1] }),
    ArgumentError,
    "[slice] expected an axis from -2 to 1 for an axis of ranges but received the number 2",
  ],
  [
    "a slice of one axis twice",
    () => slices.slice(x(), { 1: [0, 1], [-1]: [0, 1] }),
    ArgumentError,
    "[slice] expected axes that are all different for ranges",
  ],
  [
    "a slice of a named axis",
    () => slices.slice(x(), any({ rows: [0, 1] })),
    ArgumentError,
    '[slice] expected an axis from -2 to 1 for an axis of ranges but received "rows"',
  ],
  [
    "a slice with a fraction",
    () => slices.slice(x(), { 0: [0.5, 1] }),
    ArgumentError,
    "[slice] expected an integer for the start of axis 0 but received the number 0.5",
  ],
  [
    "a slice with NaN",
    () => slices.slice(x(), { 0: [0, Number.NaN] }),
    ArgumentError,
    "[slice] expected an integer for the end of axis 0 but received the number NaN",
  ],
  [
    "a slice with a number",
    () => slices.slice(x(), any({ 0: 1 })),
    ArgumentError,
    "[slice] expected [start, end] for axis 0 but received the number 1",
  ],
  [
    "a slice without ranges",
    () => slices.slice(x(), any(undefined)),
    ArgumentError,
    "[slice] expected an object of [start, end] by axis for ranges but received undefined",
  ],
  [
    "slice lists of two lengths",
    () => slices.slice(x(), [0, 0], [1]),
    ArgumentError,
    "[slice] expected as many integers as starts, 2, for ends but received [1]",
  ],
  [
    "slice lists too long",
    () => slices.slice(x(), [0, 0, 0], [1, 1, 1]),
    ArgumentError,
    "[slice] expected an array of at most 2 integers for starts",
  ],
  [
    "split by 0",
    () => slices.split(x(), 0),
    ArgumentError,
    "[split] expected an integer of at least 1 for sizes but received the number 0",
  ],
  [
    "split that does not add up",
    () => slices.split(x(), [1, 1], 1),
    ShapeError,
    "[split] sizes [1,1] add up to 2, but axis 1 has 3",
  ],
  [
    "split with an empty part",
    () => slices.split(x(), [3, 0], 1),
    ArgumentError,
    "[split] expected an array of positive integers for sizes but received [3,0]",
  ],
  [
    "concat of nothing",
    () => slices.concat([]),
    ArgumentError,
    "[concat] expected an array of at least one tensor for tensors but received []",
  ],
  [
    "concat of a tensor",
    () => slices.concat(any(x())),
    ArgumentError,
    "[concat] expected an array of at least one tensor for tensors but received a tensor of f32 [2,3]",
  ],
  [
    "concat of scalars",
    () => slices.concat([ones([]), ones([])]),
    ShapeError,
    "[concat] tensors without axes cannot be joined; stack gives them one",
  ],
  [
    "concat of other widths",
    () => slices.concat([x(), ones([2, 4])]),
    ShapeError,
    "[concat] shapes [2,3] and [2,4] (tensors[1]) differ in more than axis 0",
  ],
  [
    "concat of other ranks",
    () => slices.concat([x(), ones([3])]),
    ShapeError,
    "[concat] shapes [2,3] and [3] (tensors[1]) differ in more than axis 0",
  ],
  [
    "stack of other shapes",
    () => slices.stack([x(), ones([3, 2])]),
    ShapeError,
    "[stack] shapes [2,3] and [3,2] (tensors[1]) differ",
  ],
  [
    "gather of another rank",
    () => gather(x(), index([2]), 0),
    ShapeError,
    "[gather] expected index with as many axes as x [2,3], and no longer but along axis 0, but received [2]",
  ],
  [
    "gather longer than x",
    () => gather(x(), index([3, 1]), 1),
    ShapeError,
    "[gather] expected index with as many axes as x [2,3], and no longer but along axis 1, but received [3,1]",
  ],
  [
    "gather along axis 2",
    () => gather(x(), index([2, 1]), 2),
    ArgumentError,
    "[gather] expected an axis from -2 to 1 for axis but received the number 2",
  ],
  [
    "softmax along axis -3",
    () => softmax(x(), -3),
    ArgumentError,
    "[softmax] expected an axis from -2 to 1 for axis but received the number -3",
  ],
  [
    "softmax along a string",
    () => softmax(x(), any("1")),
    ArgumentError,
    '[softmax] expected an axis from -2 to 1 for axis but received "1"',
  ],
])("%s", (_, call, kind, message) => {
  it("is refused before anything runs", () => {
    const error = errorOf(call);
    expect(error.message.slice(0, message.length)).toBe(message);
    expect(error).toBeInstanceOf(kind);
  });
});

it("copies the lists it is given: a later change has no effect", async () => {
  await scope(async () => {
    const order = [1, 0];
    const a = tensor([[1, 2]], { requiresGrad: true });
    const y = shapes.permute(a, order);
    order.reverse();
    y.backward({ gradient: tensor([[1], [2]]) });
    expect([...((await a.grad?.toArray()) ?? [])]).toEqual([1, 2]);
  });
});
