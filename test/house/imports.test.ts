/** Imports of the files of lib/, and the names of types and files. */
import { readFileSync } from "node:fs";
import { basename, join } from "node:path";
import { describe, expect, test } from "vitest";
import { root } from "../cli/build.js";
import { circles, filesUnder, parse, reached } from "./sources.js";

const sources = new Map(filesUnder("lib", /\.ts$/).map((path) => [path, parse(path)]));

describe("imports of values", () => {
  test("no two files of lib need each other", () => {
    const graph = new Map(
      [...sources].map(([path, { loads, later }]) => [path, [...loads, ...later]]),
    );
    expect(circles(graph)).toEqual([]);
  });

  test("the library loads nothing for terminals", () => {
    const graph = new Map([...sources].map(([path, { loads }]) => [path, loads]));
    const modules = reached(graph, "lib/index.ts");
    expect(modules).toContain("lib/core/tensor.ts");
    expect(modules).toContain("yaml");
    for (const name of ["commander", "cli-progress"]) expect(modules).not.toContain(name);
    // The command line does, so the names are right.
    const terminal = reached(graph, "lib/cli/main.ts", "lib/cli/program.ts", "lib/cli/train.ts");
    expect(terminal).toContain("commander");
    expect(terminal).toContain("cli-progress");
  });
});

test("no type of lib has the name of an exported one", () => {
  const files = new Map<string, { path: string; exported: boolean }[]>();
  for (const [path, { types }] of sources) {
    for (const { name, exported } of types) {
      files.set(name, [...(files.get(name) ?? []), { path, exported }]);
    }
  }
  const doubled = [...files].filter(
    ([, places]) => places.length > 1 && places.some(({ exported }) => exported),
  );
  const found = doubled.map(([name, places]) => [name, places.map(({ path }) => path)]);
  expect(found).toEqual([]);
});

describe("names of files", () => {
  test("TypeScript and JavaScript in kebab-case", () => {
    const paths = ["lib", "test", "bench", "scripts"].flatMap((folder) =>
      filesUnder(folder, /\.(ts|mts|mjs)$/),
    );
    expect(paths.length).toBeGreaterThan(400);
    const kebab = /^[a-z0-9]+(-[a-z0-9]+)*(\.test|\.d)?\.(ts|mts|mjs)$/;
    expect(paths.filter((path) => !kebab.test(basename(path)))).toEqual([]);
  });

  test("C++ in snake_case", () => {
    const paths = filesUnder("csrc", /\.(cpp|h|cu|cuh|def)$/);
    expect(paths.length).toBeGreaterThan(100);
    const snake = /^[a-z0-9]+(_[a-z0-9]+)*\.[a-z]+$/;
    expect(paths.filter((path) => !snake.test(basename(path)))).toEqual([]);
  });
});

test("lines of C++ have at most 100 columns", () => {
  const paths = filesUnder("csrc", /\.(cpp|h|cu|cuh)$/);
  // A mark above a letter takes no column.
  const columns = (line: string) => line.replace(/\p{M}/gu, "").length;
  const long = paths.flatMap((path) =>
    readFileSync(join(root, path), "utf8")
      .split("\n")
      .flatMap((line, at) => (columns(line) > 100 ? [`${path}:${at + 1}`] : [])),
  );
  expect(long).toEqual([]);
});

describe("the reading of sources", () => {
  test("imports of types load nothing", () => {
    const text = [
      'import type { A } from "./types.js";',
      'import { type B } from "./more-types.js";',
      'export type { C } from "./types.js";',
      'import { type D, e } from "./values.js";',
      'export * from "./all.js";',
      'import "./effects.js";',
      'const f = async () => await import("package");',
      "export class G {}",
      "interface H {}",
    ].join("\n");
    expect(parse("lib/core/made-up.ts", text)).toEqual({
      loads: ["lib/core/values.ts", "lib/core/all.ts", "lib/core/effects.ts"],
      later: ["package"],
      types: [
        { name: "G", exported: true },
        { name: "H", exported: false },
      ],
    });
  });

  test("circles are found, however long", () => {
    const graph = new Map([
      ["a", ["b", "d"]],
      ["b", ["c"]],
      ["c", ["a"]],
      ["d", ["e"]],
      ["e", []],
      ["f", ["f"]],
    ]);
    expect(circles(graph)).toEqual([["a", "b", "c"], ["f"]]);
  });
});
