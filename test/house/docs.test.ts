// README.md, CONTRIBUTING.md and the reference pages name only paths, commands and anchors that
// exist. The log and the change log describe the past and may name what is gone.
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join, normalize } from "node:path";
import { describe, expect, test } from "vitest";
import { root } from "../cli/build.js";

const read = (path: string) => readFileSync(join(root, path), "utf8");
const manifest = JSON.parse(read("package.json")) as { scripts: Record<string, string> };

/** Folders and files at the root that belong to the repository; build/, data/ and runs/ do not. */
const ignored = [".git", ...(read(".gitignore").match(/[\w-]+(?=\/$)/gm) ?? [])];
const entries = readdirSync(root, { withFileTypes: true });
const names = (directories: boolean) =>
  entries
    .filter((entry) => entry.isDirectory() === directories)
    .map(({ name }) => name)
    .filter((name) => !ignored.includes(name));
const folders = new Set(names(true));
const rootFiles = new Set(names(false));

const history = ["LOG.md"];
const pages = [
  "README.md",
  "CONTRIBUTING.md",
  ...readdirSync(join(root, "docs"))
    .filter((name) => name.endsWith(".md") && !history.includes(name))
    .map((name) => `docs/${name}`),
];

const fence = /^```.*\n[\s\S]*?^```/gm;

/** The code of a page: fenced blocks and inline spans. */
function codeOf(text: string): string[] {
  const spans = text.replace(fence, "").match(/`[^`]+`/g) ?? [];
  return [...(text.match(fence) ?? []), ...spans];
}

/** Words of the code that start with a folder of the repository, as `test/ops` does. */
function pathsIn(text: string): string[] {
  return codeOf(text)
    .flatMap((code) => code.split(/[\s`"',;()=]+/))
    .map((word) => word.replace(/[.:]+$/, ""))
    .filter((word) => {
      const [folder, ...rest] = word.split("/");
      return rootFiles.has(word) || (rest.length > 0 && folders.has(folder as string));
    });
}

/** `<op>` stands for any operation and `*` for any text. */
function exists(path: string): boolean {
  let found = [root];
  // An installed package has the repository's folders.
  const own = path.replace(/^node_modules\/llamaforge\//, "");
  for (const part of own.replaceAll("<op>", "unary").split("/").filter(Boolean)) {
    const [before, after] = part.split("*") as [string, string | undefined];
    const match = (name: string) => name.startsWith(before) && name.endsWith(after ?? "");
    found = found
      .flatMap((folder) =>
        (after === undefined ? [part] : readdirSync(folder).filter(match)).map((name) =>
          join(folder, name),
        ),
      )
      .filter((name) => existsSync(name));
  }
  return found.length > 0;
}

/** The anchors of a page as GitHub makes them from its headings. */
function anchorsOf(text: string): Set<string> {
  const anchors = new Set<string>();
  for (const [, heading] of text.replace(fence, "").matchAll(/^#{1,6} (.+)$/gm)) {
    const words = (heading as string).toLowerCase().replace(/\[([^\]]*)\]\([^)]*\)/g, "$1");
    const slug = words.replace(/[^\p{L}\p{N}\s_-]/gu, "").replace(/\s/g, "-");
    let anchor = slug;
    for (let copy = 1; anchors.has(anchor); copy++) anchor = `${slug}-${copy}`;
    anchors.add(anchor);
  }
  return anchors;
}

const linksOf = (text: string) =>
  [...text.replace(fence, "").matchAll(/\]\(([^)\s]+)\)/g)]
    .map(([, target]) => target as string)
    .filter((target) => !/^[a-z]+:/.test(target));

describe.each(pages)("%s", (page) => {
  const text = read(page);

  test("names paths that exist", () => {
    expect(pathsIn(text).filter((path) => !exists(path))).toEqual([]);
  });

  test("names commands of package.json", () => {
    const named = [...text.matchAll(/\bnpm (?:run ([\w:-]+)|(test|start)\b)/g)];
    const missing = named
      .map(([, script, short]) => (script ?? short) as string)
      .filter((script) => !(script in manifest.scripts));
    expect(missing).toEqual([]);
  });

  test("links to files and headings that exist", () => {
    const broken = linksOf(text).filter((target) => {
      const [path, anchor] = target.split("#") as [string, string | undefined];
      const file = path ? normalize(join(dirname(page), path)) : page;
      if (!existsSync(join(root, file))) return true;
      return anchor !== undefined && !anchorsOf(read(file)).has(anchor);
    });
    expect(broken).toEqual([]);
  });
});

test("the checks see the paths, commands, links and anchors of a page", () => {
  const page =
    "# A `b`: c, d\n[x](docs/y.md#z) `lib/core` `build/asan`\n```\nnode bench/cpu.mjs\n```";
  expect(pathsIn(page)).toEqual(["bench/cpu.mjs", "lib/core"]);
  expect(linksOf(page)).toEqual(["docs/y.md#z"]);
  expect([...anchorsOf(page)]).toEqual(["a-b-c-d"]);
  expect(["lib/ops/<op>.ts", "csrc/fuzz/*_corpus"].map(exists)).toEqual([true, true]);
  expect(["lib/ops/nothing.ts", "csrc/fuzz/*_nothing"].map(exists)).toEqual([false, false]);
});

test("the page's tree has every folder of lib/ and csrc/, and no other", () => {
  const tree = (read("docs/how-it-works.md").match(fence) ?? []).find((block) =>
    block.includes("\nlib/\n"),
  );
  for (const floor of ["csrc", "lib"]) {
    const block = tree?.split(`\n${floor}/\n`)[1]?.split(/\n(?! )/)[0] ?? "";
    const named = block.split("\n").flatMap((line) => line.match(/^ {2}([\w-]+)\//)?.[1] ?? []);
    const real = readdirSync(join(root, floor), { withFileTypes: true })
      .filter((entry) => entry.isDirectory())
      .map(({ name }) => name);
    expect(named.sort()).toEqual(real.sort());
  }
});

test("docs/faults.md names tests that exist", () => {
  const rows = read("docs/faults.md").split("\n");
  const cells = rows.filter((row) => /^\| [A-Z]\d/.test(row)).map((row) => row.split(" | ").at(-1));
  const names = cells.flatMap((cell) => cell?.match(/`[a-z]\d\d?-[\w-]+`/g) ?? []);
  expect(names.length).toBeGreaterThan(50);
  const files = names.map((name) => `test/fault/${name.slice(1, -1)}.test.ts`);
  expect(files.filter((file) => !existsSync(join(root, file)))).toEqual([]);
});

describe("results of benchmarks", () => {
  const results = readdirSync(join(root, "bench/results")).filter((name) => name.endsWith(".json"));
  test.each(results)("%s names no folder of the machine that ran it", (name) => {
    const text = read(`bench/results/${name}`);
    // Programs of this package go by their path in it; libraries lie under /usr, /lib and /opt.
    expect(text.match(/[" ]\/(?!usr\/|lib\/|opt\/|proc\/|dev\/)[\w.-]+\/[\w./-]+/g) ?? []).toEqual(
      [],
    );
  });
});
