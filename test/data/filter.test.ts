import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { ArgumentError } from "../../lib/core/errors.js";
import { parseFieldPath, parseFilter } from "../../lib/prepare/readers/filter.js";

const record = {
  text: "a b c",
  meta: { redpajama_set_name: "RedPajamaC4", "odd name": 1, empty: null },
  stars: 12,
  size: 9007199254740993n,
  tags: ["x", "y"],
  fork: false,
  ok: true,
};

describe("filter", () => {
  it.each<[string, boolean]>([
    ['meta.redpajama_set_name != "RedPajamaGithub"', true],
    ["meta.redpajama_set_name == 'RedPajamaC4'", true],
    ['meta["odd name"] == 1 and tags[1] == "y"', true],
    ["stars >= 12 and stars <= 12 and not (stars < 12 or stars > 12)", true],
    ["stars in [1, 12, 'z']", true],
    ["stars not in [1, 2]", true],
    ["missing in [1]", false],
    ["missing.deep[3].er == null", true],
    ["meta.empty == null and missing != 0", true],
    ["missing < 1 or missing > 0", false],
    ["text < 5", false],
    ['text < "b"', true],
    ['text == text and "x" == "x"', true],
    ["'1' == 1", false],
    ["tags contains 'x' and text contains \"b c\"", true],
    ["tags contains 'z' or stars contains 1", false],
    ["ok", true],
    ["fork", false],
    ["not fork && !missing", true],
    ["not not ok", true],
    ["stars", false],
    ["fork == false || true == false", true],
    // `and` before `or`.
    ["ok or fork and fork", true],
    ["(ok or fork) and fork", false],
    ["stars == 1.2e1 and stars > -3", true],
    ["size > 9e15", true],
    ["'it\\'s \"\\u00e9' == \"it's \\\"é\"", true],
    // Inherited properties are not fields.
    ["constructor == null and tags.length == null and text.length == null", true],
    ["__proto__ == null", true],
  ])("%s is %s", (source, expected) => {
    expect(parseFilter(source).matches(record)).toBe(expected);
  });

  it("knows the top fields that it reads", () => {
    const { fields } = parseFilter("a.b == 1 or c[0] in [1] and not d and 'e' == f.g.h");
    expect([...fields].sort()).toEqual(["a", "c", "d", "f"]);
    expect(parseFieldPath("meta.content")).toMatchObject({ keys: ["meta", "content"] });
    expect(parseFieldPath("meta.content").read({ meta: { content: "x" } })).toBe("x");
  });

  it.each<[string, number, RegExp]>([
    ["stars = 1", 7, /unexpected "="; equality is ==/],
    ["stars == ", 10, /expected a field or a value, got the end/],
    ["stars == 1 stars", 12, /expected and, or, or the end, got "stars"/],
    ["(a == 1", 8, /expected \), got the end/],
    ["a in 1", 6, /expected \[ and a list/],
    ["a in [1 2]", 9, /expected , or \]/],
    ["a in [b]", 7, /expected a value, got "b"/],
    ["a not b", 7, /expected in, got "b"/],
    ['a == "open', 6, /the text does not end/],
    ["a.", 3, /expected a field's name/],
    ["a[", 3, /a number or a quoted name/],
    ["and", 1, /a field or a value/],
    ["", 1, /a field or a value, got the end/],
    ["a ; b", 3, /unexpected ";"/],
    ["a + 1 == 2", 3, /unexpected "\+"/],
    ['a == "\\x"', 6, /no text with JSON's escapes/],
    ["(".repeat(200), 101, /at most 100 nested parts/],
  ])("points at what does not belong: %s", (source, column, message) => {
    let error: Error | undefined;
    try {
      parseFilter(source);
    } catch (caught) {
      error = caught as Error;
    }
    expect(error).toBeInstanceOf(ArgumentError);
    expect(error?.message).toMatch(message);
    expect(error?.message).toMatch(new RegExp(`^\\[filter\\] column ${column}: `));
    expect(error?.message.split("\n").at(-1)).toBe(`  ${" ".repeat(column - 1)}^`);
  });

  it("gives an ArgumentError or a filter for any text, and never throws on any record", () => {
    const part = fc.constantFrom(
      ..."a b.c [ ] ( ) == != < in not and or 'x' 1 null , contains \" ! .".split(" "),
    );
    fc.assert(
      fc.property(fc.array(part, { maxLength: 12 }), fc.jsonValue(), (parts, value) => {
        let filter: ReturnType<typeof parseFilter>;
        try {
          filter = parseFilter(parts.join(" "));
        } catch (error) {
          expect(error).toBeInstanceOf(ArgumentError);
          return;
        }
        expect(typeof filter.matches(value)).toBe("boolean");
      }),
      { numRuns: 2000 },
    );
  });
});
