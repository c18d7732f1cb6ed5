import { ArgumentError } from "./errors.js";

// Checks of plain values, for files that must not load the native addon too. check.ts adds those of tensors and devices.
// Messages read "[op] expected X for name but received Y".

/** How tensors are known and described; check.ts says so when it is loaded. */
let tensors = {
  /** Tensors, and what has their prototype. */
  isLikeOne: (_value: object): boolean => false,
  describe: (_value: object): string | null => null,
};

/** @internal */
export function explainTensors(how: typeof tensors): void {
  tensors = how;
}

/** Describes a value in words for a message; never runs code of the value (no toString, no getter). */
export function describe(value: unknown): string {
  if (value === null || value === undefined) return String(value);
  switch (typeof value) {
    case "number":
      return Object.is(value, -0) ? "the number -0" : `the number ${value}`;
    case "bigint":
      return `the bigint ${value}n`;
    case "string":
      return JSON.stringify(value.length > 40 ? `${value.slice(0, 40)}...` : value);
    case "boolean":
      return String(value);
    case "object":
      if (Array.isArray(value)) return arrayText(value);
      if (ArrayBuffer.isView(value)) return "a typed array";
      return tensors.describe(value) ?? "an object that is not a tensor";
    default:
      return `a ${typeof value}`;
  }
}

function arrayText(values: readonly unknown[]): string {
  const plain = values.length <= 16 && values.every((value) => typeof value === "number");
  return plain ? `[${values.join(",")}]` : `an array of length ${values.length}`;
}

/** A value as JSON, for a message; in words if it has no JSON form: a bigint, a function, an object within itself. */
export function jsonText(value: unknown): string {
  try {
    return JSON.stringify(value) ?? describe(value);
  } catch {
    return describe(value);
  }
}

/** The one maker of argument errors. */
export function argumentError(
  op: string,
  expected: string,
  name: string,
  received: unknown,
): ArgumentError {
  return new ArgumentError(
    `[${op}] expected ${expected} for ${name} but received ${describe(received)}`,
  );
}

/** A finite number in [min, max]. */
export function checkNumber(
  op: string,
  name: string,
  value: unknown,
  { min = -Number.MAX_VALUE, max = Number.MAX_VALUE }: { min?: number; max?: number } = {},
): asserts value is number {
  if (typeof value === "number" && value >= min && value <= max) return;
  throw argumentError(op, `a finite number${rangeText(min, max)}`, name, value);
}

/** A whole number in [min, max]. */
export function checkInteger(
  op: string,
  name: string,
  value: unknown,
  {
    min = Number.MIN_SAFE_INTEGER,
    max = Number.MAX_SAFE_INTEGER,
  }: { min?: number; max?: number } = {},
): asserts value is number {
  if (Number.isSafeInteger(value) && (value as number) >= min && (value as number) <= max) return;
  throw argumentError(op, `an integer${rangeText(min, max)}`, name, value);
}

function rangeText(min: number, max: number): string {
  const low = min > Number.MIN_SAFE_INTEGER;
  const high = max < Number.MAX_SAFE_INTEGER;
  if (low && high) return ` from ${min} to ${max}`;
  if (low) return ` of at least ${min}`;
  return high ? ` of at most ${max}` : "";
}

export function checkBoolean(op: string, name: string, value: unknown): asserts value is boolean {
  if (typeof value !== "boolean") throw argumentError(op, "true or false", name, value);
}

/** One of the strings. */
export function checkChoice<T extends string>(
  op: string,
  name: string,
  value: unknown,
  choices: readonly T[],
): asserts value is T {
  if (choices.includes(value as T)) return;
  throw argumentError(op, choices.map((choice) => `"${choice}"`).join(" or "), name, value);
}

export function checkString(op: string, name: string, value: unknown): asserts value is string {
  if (typeof value !== "string") throw argumentError(op, "a string", name, value);
}

/** A path: what is none would be an error of Node.js without the argument's name. */
export function checkPath(op: string, name: string, value: unknown): asserts value is string {
  if (typeof value === "string" && value !== "" && !value.includes("\0")) return;
  throw argumentError(op, "a path", name, value);
}

/** For constructors that only a function of their class calls. @param made whether it was that one */
export function checkMade(kind: string, maker: string, made: boolean): void {
  if (made) return;
  throw new ArgumentError(
    `[${kind}] expected ${maker} instead of new ${kind}: it makes these objects`,
  );
}

type AnyFunction = (...args: never[]) => unknown;

export function checkFunction(
  op: string,
  name: string,
  value: unknown,
): asserts value is AnyFunction {
  if (typeof value !== "function") throw argumentError(op, "a function", name, value);
}

export function checkArray(
  op: string,
  name: string,
  value: unknown,
  what = "an array",
): asserts value is readonly unknown[] {
  if (!Array.isArray(value)) throw argumentError(op, what, name, value);
}

/** An object whose fields may be read: no array, no tensor, nothing that only looks like a tensor. */
export function checkObject(
  op: string,
  name: string,
  value: unknown,
  what = "an object",
): asserts value is object {
  const plain = typeof value === "object" && value !== null && !Array.isArray(value);
  if (!plain || tensors.isLikeOne(value)) throw argumentError(op, what, name, value);
}

/** An object of a class of this copy of the library, not one that only looks like it. */
export function checkInstance<T>(
  op: string,
  name: string,
  value: unknown,
  kind: { readonly prototype: T; [Symbol.hasInstance](value: unknown): boolean },
  what: string,
): asserts value is T {
  if (!(value instanceof kind)) throw argumentError(op, what, name, value);
}

/** A plain options object with none but the known keys. */
export function checkOptions(op: string, options: unknown, known: readonly string[]): void {
  if (options === undefined) return;
  checkObject(op, "options", options);
  const unknownKey = Object.keys(options).find((key) => !known.includes(key));
  if (unknownKey === undefined) return;
  throw new ArgumentError(
    `[${op}] expected options among ${known.join(", ")} but received ${JSON.stringify(unknownKey)}`,
  );
}
