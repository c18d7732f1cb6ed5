// A user's mistake is never reported as a bug. Every command gets paths that lead nowhere and files
// that are not text.
import { chmodSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, expect, it, vi } from "vitest";
import { stringify } from "yaml";
import { commandTree, createProgram, runCli } from "../../lib/cli/program.js";
import { flagOf } from "../../lib/core/option-names.js";
import { root } from "./build.js";

let folder: string;
let stderr = "";
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "bad-paths-"));
  writeFileSync(join(folder, "file"), "x");
  symlinkSync("loop", join(folder, "loop"));
  mkdirSync(join(folder, "closed"));
  chmodSync(join(folder, "closed"), 0);
  mkdirSync(join(folder, "texts"));
  writeFileSync(join(folder, "texts/a.txt"), "some text");
  for (const [name, text] of Object.entries(yamls)) writeFileSync(join(folder, name), text);
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));
beforeEach(() => {
  stderr = "";
  vi.spyOn(process.stdout, "write").mockReturnValue(true);
  vi.spyOn(process.stderr, "write").mockImplementation((text) => {
    stderr += text;
    return true;
  });
});
afterEach(() => {
  vi.restoreAllMocks();
  process.exitCode = undefined;
});

const model = { preset: "quickstart" };
const recipe = (more: object) =>
  stringify({ name: "x", steps: 1, model, data: { train: { nowhere: 1 } }, ...more });
const yamls: Record<string, string> = {
  "bomb.yaml": `a: &a [1,1,1,1,1,1,1,1,1,1]\n${["b", "c", "d", "e", "f"]
    .map((key, i) => `${key}: &${key} [${Array(10).fill(`*${"abcde"[i]}`).join(",")}]`)
    .join("\n")}\n`,
  "unresolved.yaml": "a: *nothing\n",
  "itself.yaml": "a: &a [*a]\n",
  "deep.yaml": `a: ${"[".repeat(50_000)}\n`,
  "dashes.yaml": `${"- ".repeat(50_000)}\n`,
  "twice.yaml": "a: 1\na: 2\n",
  "two.yaml": "a: 1\n---\nb: 2\n",
  "list.yaml": "- 1\n",
  "number.yaml": "1\n",
  "nul.yaml": 'a: "\\0"\n',
  "none.yaml": "# nothing\n",
};

/** Wrong paths, one for each kind of mistake. */
const paths: [what: string, path: (folder: string) => string][] = [
  ["one that is not there", (at) => join(at, "none")],
  ["one below a file", (at) => join(at, "file/below")],
  ["a link to itself", (at) => join(at, "loop")],
  ["one below a link to itself", (at) => join(at, "loop/below")],
  ["a name of 300 letters", (at) => join(at, "n".repeat(300))],
  ["a path of 5000 letters", (at) => `${at}/${"n/".repeat(2500)}`],
  ["one below /proc", () => "/proc/nothing/here"],
  ["one below a device", () => "/dev/null/here"],
];
const tokenizer = join(root, "assets/quickstart");

const commands: [what: string, argv: (path: string) => string[]][] = [
  ["train", (path) => ["train", path]],
  ["train --set out", (path) => ["train", join(folder, "run.yaml"), "--set", `out=${path}`]],
  ["train --resume", (path) => ["train", join(folder, "run.yaml"), "--resume", path]],
  ["plan", (path) => ["plan", path]],
  ["prepare", (path) => ["prepare", path, "--out", join(folder, "o"), "--tokenizer", tokenizer]],
  [
    "prepare --out",
    (path) => ["prepare", join(folder, "texts"), "--out", path, "--tokenizer", tokenizer],
  ],
  [
    "prepare --tokenizer",
    (path) => ["prepare", join(folder, "texts"), "--out", join(folder, "o"), "--tokenizer", path],
  ],
  ["prepare --config", (path) => ["prepare", "--config", path]],
  ["generate", (path) => ["generate", path, "x"]],
  ["verify", (path) => ["verify", path]],
  ["report", (path) => ["report", path]],
  ["bench --config", (path) => ["bench", "parity", "--config", path, "--device", "cpu"]],
  ["launch", (path) => ["launch", "--nproc", "1", "--max-restarts", "1", "--", "train", path]],
];

it.each(commands)(
  "%s: a wrong path is told as what it is",
  async (_, argv) => {
    writeFileSync(join(folder, "run.yaml"), recipe({}));
    for (const [what, path] of paths) {
      stderr = "";
      const code = await runCli(argv(path(folder)));
      if (code === 0 && argv(path(folder)).includes("--out")) {
        rmSync(path(folder), { recursive: true });
        continue;
      }
      expect([2, 3, 4], `${what}: ${code} ${stderr}`).toContain(code);
      expect(stderr, what).toMatch(/^(llamaforge|note|warning)/);
      expect(stderr, what).not.toContain("    at ");
    }
  },
  60_000,
);

it.each(Object.keys(yamls))(
  "%s is no recipe, of a run, a data set or foreign files",
  async (name) => {
    const file = join(folder, name);
    expect(await runCli(["plan", file])).toBe(2);
    expect(await runCli(["train", file])).toBe(2);
    const out = ["--out", join(folder, "o"), "--tokenizer", tokenizer];
    expect(await runCli(["prepare", "--config", file, ...out])).toBe(2);
    writeFileSync(
      join(folder, "foreign-run.yaml"),
      recipe({ data: { train: { [file]: 1 } }, out: join(folder, "r") }),
    );
    expect(await runCli(["train", join(folder, "foreign-run.yaml")]), stderr).toBe(3);
    expect(stderr).not.toContain("This is a bug");
  },
  60_000,
);

it("every option that messages name has its flag", () => {
  const flags = new Set(
    commandTree(createProgram()).flatMap(({ options }) => options.map(({ long }) => long)),
  );
  const named = [
    ...["validationFraction", "shardTokens", "maxRunShare", "documentStart", "documentEnd"],
    ...["invalidUtf8", "badRecords", "textField", "minBytes", "maxBytes", "startOver"],
    ...["overwrite", "kind", "languages", "split", "deduplicate", "workers", "out", "tokenizer"],
    ...["skipUnreadable", "base", "allowCodeExecution"],
  ];
  for (const name of named) expect(flags, name).toContain(flagOf(name));
});
