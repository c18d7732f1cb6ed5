import { ArgumentError } from "./errors.js";

// Checks of plain values, also for files that must not load the native addon. check.ts adds the
// checks of tensors and devices. Messages read "[op] expected X for name but received Y".

/** How to recognise and describe tensors. check.ts fills this in when it is loaded. */
let tensors = {
  /** Whether a value is a tensor or has a tensor's prototype. */
  isLikeOne: (_value: object): boolean => false,
  describe: (_value: object): string | null => null,
};

/** @internal */
export function explainTensors(how: typeof tensors): void {
  tensors = how;
}

/**
 * Describes a value in words for a message. It never runs code of the value (no toString, no
 * getter).
 */
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

/**
 * A value as JSON for a message; in words if it has no JSON form, such as a bigint, a function or a
 * circular object.
 */
export function jsonText(value: unknown): string {
  try {
    return JSON.stringify(value) ?? describe(value);
  } catch {
    return describe(value);
  }
}

/** The only constructor of argument errors. */
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

/** Checks for a finite number in [min, max]. */
export function checkNumber(
  op: string,
  name: string,
  value: unknown,
  { min = -Number.MAX_VALUE, max = Number.MAX_VALUE }: { min?: number; max?: number } = {},
): asserts value is number {
  if (typeof value === "number" && value >= min && value <= max) return;
  throw argumentError(op, `a finite number${rangeText(min, max)}`, name, value);
}

/** Checks for a whole number in [min, max]. */
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

/** Checks for one of the given strings. */
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

/** Checks for a path. Otherwise Node.js would report an error without the argument's name. */
export function checkPath(op: string, name: string, value: unknown): asserts value is string {
  if (typeof value === "string" && value !== "" && !value.includes("\0")) return;
  throw argumentError(op, "a path", name, value);
}

/**
 * Guards constructors that only a static function of their class may call. @param made whether that
 * function called
 */
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

/**
 * Checks for an object whose fields may be read: no array, no tensor, and nothing that only looks
 * like a tensor.
 */
export function checkObject(
  op: string,
  name: string,
  value: unknown,
  what = "an object",
): asserts value is object {
  const plain = typeof value === "object" && value !== null && !Array.isArray(value);
  if (!plain || tensors.isLikeOne(value)) throw argumentError(op, what, name, value);
}

/** Checks for an instance of a class of this copy of the library, not of a look-alike. */
export function checkInstance<T>(
  op: string,
  name: string,
  value: unknown,
  kind: { readonly prototype: T; [Symbol.hasInstance](value: unknown): boolean },
  what: string,
): asserts value is T {
  if (!(value instanceof kind)) throw argumentError(op, what, name, value);
}

/** Checks for a plain options object that has only known keys. */
export function checkOptions(op: string, options: unknown, known: readonly string[]): void {
  if (options === undefined) return;
  checkObject(op, "options", options);
  const unknownKey = Object.keys(options).find((key) => !known.includes(key));
  if (unknownKey === undefined) return;
  throw new ArgumentError(
    `[${op}] expected options among ${known.join(", ")} but received ${JSON.stringify(unknownKey)}`,
  );
}
