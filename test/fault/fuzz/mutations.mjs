// Mutations of a file as data, so that fast-check can generate and shrink them: bytes, ranges, and
// the tokens of JSON and YAML.
import fc from "fast-check";

/** Text of values that are hard for parsers. */
export const hostile = [
  "null",
  "-1",
  "0",
  "-0",
  "1e400",
  "1.5",
  "9007199254740993",
  "18446744073709551616",
  "NaN",
  ".inf",
  "true",
  "[]",
  "{}",
  '""',
  '"\\ud800"',
  '"__proto__"',
  '{"__proto__":{"polluted":true}}',
  '"../../etc/passwd"',
  '"/dev/zero"',
  '"a\\u0000b"',
  "[".repeat(3000),
  `"${"x".repeat(5000)}"`,
  "*a",
  "&a [*a]",
  "!!js/function x",
  "<<: {a: 1}",
  "\u2028",
];

const place = fc.nat(1_000_000);
const edit = fc.oneof(
  fc.record({ kind: fc.constant("bit"), place, bit: fc.nat(7) }),
  fc.record({ kind: fc.constant("byte"), place, byte: fc.nat(255) }),
  fc.record({ kind: fc.constant("delete"), place, length: fc.nat(64) }),
  fc.record({ kind: fc.constant("repeat"), place, length: fc.nat(64), times: fc.nat(20) }),
  fc.record({ kind: fc.constant("truncate"), place }),
  fc.record({ kind: fc.constant("insert"), place, bytes: fc.uint8Array({ maxLength: 16 }) }),
  fc.record({ kind: fc.constant("token"), place, value: fc.nat(hostile.length - 1) }),
  fc.record({ kind: fc.constant("swap"), place, other: place }),
);

/** One to four changes. */
export const edits = fc.array(edit, { minLength: 1, maxLength: 4 });

/** Strings, numbers, words and brackets of a text. */
const tokenPattern = /"(?:[^"\\\n]|\\.)*"|-?\d[\d.eE+-]*|[A-Za-z_]\w*|[[\]{}]/g;

function tokensOf(bytes) {
  const text = bytes.toString("latin1");
  return [...text.matchAll(tokenPattern)].map((found) => [found.index, found[0].length]);
}

function splice(bytes, at, length, content) {
  return Buffer.concat([bytes.subarray(0, at), content, bytes.subarray(at + length)]);
}

/** The file after the changes. */
export function apply(original, list) {
  let bytes = Buffer.from(original);
  for (const change of list) {
    if (bytes.length === 0) return bytes;
    const at = change.place % bytes.length;
    if (change.kind === "bit") bytes[at] ^= 1 << change.bit;
    if (change.kind === "byte") bytes[at] = change.byte;
    if (change.kind === "delete") bytes = splice(bytes, at, change.length, Buffer.alloc(0));
    if (change.kind === "truncate") bytes = bytes.subarray(0, at);
    if (change.kind === "insert") bytes = splice(bytes, at, 0, Buffer.from(change.bytes));
    if (change.kind === "repeat") {
      const piece = bytes.subarray(at, at + change.length);
      bytes = splice(bytes, at, 0, Buffer.concat(Array(change.times).fill(piece)));
    }
    if (change.kind === "token" || change.kind === "swap") {
      const tokens = tokensOf(bytes);
      if (tokens.length === 0) continue;
      const [start, length] = tokens[change.place % tokens.length];
      const [from, size] = tokens[(change.other ?? 0) % tokens.length];
      const content =
        change.kind === "token"
          ? Buffer.from(hostile[change.value])
          : Buffer.from(bytes.subarray(from, from + size));
      bytes = splice(bytes, start, length, content);
    }
  }
  return bytes;
}
