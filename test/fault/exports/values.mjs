// Values that no argument accepts, and the results that count as right.
import { cpu, LlamaForgeError, Tensor, zeros } from "../../../dist/index.js";

/** An error of the caller's code, which must come back unchanged. */
export const ownError = new Error("of the caller's own");

const thrower = new Proxy(
  {},
  {
    get: () => {
      throw ownError;
    },
    has: () => {
      throw ownError;
    },
    ownKeys: () => {
      throw ownError;
    },
  },
);

function gone() {
  const tensor = zeros([2, 2]);
  tensor.dispose();
  return tensor;
}

async function* later() {
  yield 1;
}

/** New values for each call, because a function may keep or dispose its arguments. */
export const hostile = {
  undefined: () => undefined,
  null: () => null,
  true: () => true,
  "-1": () => -1,
  0: () => 0,
  5: () => 5,
  1.5: () => 1.5,
  NaN: () => Number.NaN,
  Infinity: () => Number.POSITIVE_INFINITY,
  "2^31": () => 2 ** 31,
  "2^53": () => 2 ** 53,
  1e308: () => 1e308,
  '""': () => "",
  '"x"': () => "x",
  "a NUL": () => "a\0b",
  "{}": () => ({}),
  "an unknown option": () => ({ noSuchOption: 1 }),
  "[]": () => [],
  "[1]": () => [1],
  "[null]": () => [null],
  "[symbol]": () => [Symbol("s")],
  "[[{}]]": () => [[{}]],
  "array-like": () => ({ length: 2 ** 53 - 1, 0: 1 }),
  "no prototype": () => Object.create(null),
  function: () => () => {},
  "async function": () => async () => {},
  class: () => class Some {},
  symbol: () => Symbol("s"),
  bigint: () => 1n,
  promise: () => Promise.resolve(1),
  map: () => new Map([["a", 1]]),
  date: () => new Date(Number.NaN),
  Float32Array: () => new Float32Array(4),
  ArrayBuffer: () => new ArrayBuffer(8),
  "async iterable": later,
  Proxy: () => new Proxy({}, {}),
  "Proxy of a tensor": () => new Proxy(zeros([2, 2]), {}),
  "throwing Proxy": () => thrower,
  "tensor of i32": () => zeros([2, 2], { dtype: "i32" }),
  "tensor without axes": () => zeros([]),
  "disposed tensor": gone,
  "like a tensor": () => Object.create(Tensor.prototype),
  device: () => cpu,
};

/** The few values for calls that take long. */
export const few = [
  "undefined",
  "null",
  "5",
  "NaN",
  "2^53",
  '"x"',
  "{}",
  "[]",
  "function",
  "symbol",
  "bigint",
  "Proxy of a tensor",
];

/** Whether an error is one that a user can act on. */
export const isTyped = (error) =>
  error instanceof LlamaForgeError ||
  error === ownError ||
  // The wrong value was a class, and the library called it as a function.
  /^Class constructor Some cannot be invoked/.test(error?.message);

/** The result of a call: waits for promises and takes the first values of generators. */
export async function settled(value) {
  const result = await value;
  if (typeof result?.next === "function" && typeof result[Symbol.asyncIterator] === "function") {
    for (let i = 0; i < 2; i++) if ((await result.next()).done) break;
    await result.return?.();
  }
  for (const end of ["close", "dispose"]) {
    if (typeof result?.[end] === "function" && typeof result !== "function") await result[end]();
  }
  return result;
}
