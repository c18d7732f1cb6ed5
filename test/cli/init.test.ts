import { execFileSync } from "node:child_process";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { loadConfig } from "../../lib/config/index.js";
import { buildLibrary, root } from "./build.js";
import { llamaforge } from "./run.js";

let folder: string;
beforeAll(() => {
  buildLibrary();
  folder = mkdtempSync(join(tmpdir(), "llamaforge-init-"));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const run = (...args: string[]) => llamaforge(args, { cwd: folder });

describe("init", () => {
  it("writes a recipe, a tokenizer, a place for texts and a script that trains", async () => {
    const { code, stdout, stderr } = await run("init", "My model");
    expect(code, stderr).toBe(0);
    expect(stdout).toContain("node train.mjs");
    const made = join(folder, "My model");
    expect(readdirSync(made).sort()).toEqual([
      ".gitignore",
      "package.json",
      "recipe.yaml",
      "texts",
      "tokenizer",
      "train.mjs",
    ]);
    expect(loadConfig(join(made, "recipe.yaml"))).toMatchObject({ name: "my-model" });
    const manifest = JSON.parse(readFileSync(join(made, "package.json"), "utf8"));
    expect(manifest.name).toBe("my-model");

    // The script as it stands, but for the size of its run.
    for (let i = 0; i < 40; i++) {
      const text = `Address ${i}. The people of the United States have a government. `.repeat(20);
      writeFileSync(join(made, "texts", `${i}.txt`), text);
    }
    const recipe = readFileSync(join(made, "recipe.yaml"), "utf8")
      .replace("steps: 500", "steps: 10\nthreads: 1")
      .replace("preset: quickstart", "preset: quickstart\n  layers: 1")
      .replace("sequenceLength: 256", "sequenceLength: 32")
      .replace("microBatch: 8", "microBatch: 1")
      .replace("maxTokens: 48", "maxTokens: 4");
    writeFileSync(join(made, "recipe.yaml"), recipe);
    mkdirSync(join(made, "node_modules"));
    symlinkSync(root, join(made, "node_modules/llamaforge"));
    const text = execFileSync(process.execPath, ["train.mjs"], { cwd: made, encoding: "utf8" });
    expect(text).toMatch(/^10 \d\.\d+ \d+ tokens\/s\nThe .*\n/m);
    expect(text).not.toContain("[AsyncGenerator]");
    expect(existsSync(join(made, "runs/my-model/run.json"))).toBe(true);
  });

  it("writes a script in TypeScript whose types are right", async () => {
    expect((await run("init", "typed", "--language", "ts")).code).toBe(0);
    const made = join(folder, "typed");
    const manifest = JSON.parse(readFileSync(join(made, "package.json"), "utf8"));
    expect(Object.keys(manifest.devDependencies)).toEqual(["@types/node", "typescript"]);
    mkdirSync(join(made, "node_modules"));
    symlinkSync(root, join(made, "node_modules/llamaforge"));
    symlinkSync(join(root, "node_modules/@types"), join(made, "node_modules/@types"));
    const compiler = join(root, "node_modules/typescript/bin/tsc");
    execFileSync(process.execPath, [compiler, "-p", made], { encoding: "utf8" });
  });

  it("leaves a project's own files alone, and refuses to replace a recipe", async () => {
    const project = join(folder, "project");
    mkdirSync(project);
    writeFileSync(join(project, "package.json"), '{"name": "mine"}');
    expect((await run("init", "project", "--language", "ts")).code).toBe(0);
    expect(readFileSync(join(project, "package.json"), "utf8")).toBe('{"name": "mine"}');
    expect(existsSync(join(project, "train.ts"))).toBe(true);
    const again = await run("init", "project", "--language", "ts");
    expect(again.code).toBe(2);
    expect(again.stderr).toContain("project already has recipe.yaml, train.ts");
  });
});

describe("completion", () => {
  const complete = (script: string, words: string[]): string[] => {
    const program = `${script}
      COMP_WORDS=(${words.map((word) => `'${word}'`).join(" ")}); COMP_CWORD=${words.length - 1}
      _llamaforge; echo "\${COMPREPLY[@]}"`;
    return execFileSync("bash", ["-c", program], { encoding: "utf8" }).trim().split(" ");
  };

  it("completes commands, subcommands and options in bash", async () => {
    const { stdout } = await run("completion", "bash");
    expect(complete(stdout, ["llamaforge", "qu"])).toEqual(["quickstart"]);
    expect(complete(stdout, ["llamaforge", "bench", ""])).toContain("parity");
    expect(complete(stdout, ["llamaforge", "bench", "parity", "--micro"])).toEqual([
      "--micro-batch",
    ]);
    expect(complete(stdout, ["llamaforge", "train", "--res"])).toEqual([
      "--resume",
      "--resume-strict",
    ]);
  });

  it("knows zsh and fish, and no other shell", async () => {
    expect((await run("completion", "zsh")).stdout).toMatch(/^autoload -Uz bashcompinit/);
    const { stdout } = await run("completion", "fish");
    expect(stdout).toContain("-n '__fish_use_subcommand' -a quickstart");
    expect(stdout).toContain("-n '__fish_seen_subcommand_from doctor' -l json");
    const { code, stderr } = await run("completion", "tcsh");
    expect(code).toBe(2);
    expect(stderr).toContain("only for bash, zsh, fish");
  });
});
