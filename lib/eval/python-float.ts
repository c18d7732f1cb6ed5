import { strip } from "./python-text.js";

const digits = String.raw`\d(?:_?\d)*`;
const pattern = new RegExp(
  `^[+-]?(?:inf|infinity|nan|(?:${digits}\\.?(?:${digits})?|\\.${digits})(?:e[+-]?${digits})?)$`,
  "i",
);

/** `float(text)` of Python; null where it raises ValueError. */
export function pythonFloat(text: string): number | null {
  const plain = strip(text).replace(/\p{Nd}/gu, decimalDigit);
  if (!pattern.test(plain)) return null;
  const [, sign, word] = /^([+-]?)(inf|nan)/i.exec(plain) ?? [];
  if (word === undefined) return Number(plain.replaceAll("_", ""));
  if (/nan/i.test(word)) return Number.NaN;
  return sign === "-" ? Number.NEGATIVE_INFINITY : Number.POSITIVE_INFINITY;
}

/** A decimal digit of any script as one of "0" to "9". The digits of a script stand in a row. */
function decimalDigit(char: string): string {
  const code = char.codePointAt(0) as number;
  let value = 0;
  while (/\p{Nd}/u.test(String.fromCodePoint(code - value - 1))) value++;
  return String(value % 10);
}

/** `str(value)` of a Python float: the shortest digits that give the number, and always a point. */
export function pythonFloatText(value: number): string {
  if (Number.isNaN(value)) return "nan";
  if (!Number.isFinite(value)) return value > 0 ? "inf" : "-inf";
  const sign = value < 0 || Object.is(value, -0) ? "-" : "";
  const [mantissa = "", power = ""] = Math.abs(value).toExponential().split("e");
  const exponent = Number(power);
  const significant = mantissa.replace(".", "");
  if (exponent < -4 || exponent >= 16) {
    const size = String(Math.abs(exponent)).padStart(2, "0");
    return `${sign}${mantissa}e${exponent < 0 ? "-" : "+"}${size}`;
  }
  if (exponent < 0) return `${sign}0.${"0".repeat(-exponent - 1)}${significant}`;
  const whole = significant.slice(0, exponent + 1).padEnd(exponent + 1, "0");
  return `${sign}${whole}.${significant.slice(exponent + 1) || "0"}`;
}
