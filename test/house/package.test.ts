// What a user of the package gets (FAULTS I2): the files, the entry points, no work at install.
import { execFileSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, test } from "vitest";
import * as surface from "../../lib/index.js";
import { buildLibrary, root } from "../cli/build.js";

const manifest = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));
beforeAll(() => buildLibrary());

describe("the package", () => {
  test("contains what it runs on and nothing else", () => {
    const text = execFileSync("npm", ["pack", "--dry-run", "--json", "--ignore-scripts"], {
      cwd: root,
      encoding: "utf8",
      stdio: ["ignore", "pipe", "ignore"],
    });
    const [{ files }] = JSON.parse(text) as [{ files: { path: string }[] }];
    const paths = files.map(({ path }) => path);
    for (const wanted of [
      "dist/index.js",
      "dist/cli/main.js",
      "assets/quickstart/tokenizer.json",
      "configs/quickstart.yaml",
      "LICENSE",
      "README.md",
    ]) {
      expect(paths).toContain(wanted);
    }
    const folders = new Set(
      paths.filter((path) => path.includes("/")).map((path) => path.split("/")[0]),
    );
    const allowed = ["dist", "prebuilds", "assets", "configs", "bench"];
    expect([...folders].filter((folder) => !allowed.includes(folder as string))).toEqual([]);
  });

  test("runs no script when it is installed, and pins what it needs in a lock file", () => {
    for (const hook of ["preinstall", "postinstall", "prepare"])
      expect(manifest.scripts[hook]).toBe(undefined);
    expect(manifest.gypfile).toBe(false);
    const lock = JSON.parse(readFileSync(join(root, "package-lock.json"), "utf8"));
    expect(lock.packages[""].dependencies).toEqual(manifest.dependencies);
    expect(lock.packages[""].devDependencies).toEqual(manifest.devDependencies);
  });

  test("its entry points are there, and require() of it works as import does", () => {
    expect(existsSync(join(root, manifest.bin.llamaforge))).toBe(true);
    const program =
      "const { Llama, presets } = require('llamaforge'); console.log(typeof Llama.create, presets.quickstart.layers)";
    const required = process.features as { require_module?: boolean };
    const flags = required.require_module ? [] : ["--experimental-require-module"];
    const text = execFileSync(process.execPath, [...flags, "--no-warnings", "-e", program], {
      cwd: root,
      encoding: "utf8",
    });
    expect(text.trim()).toBe("function 6");
  });
});

test("the public surface is this list; a change of it is a decision", () => {
  const values = Object.keys(surface).sort();
  for (const name of [
    "Llama",
    "AdamW",
    "Trainer",
    "Mixture",
    "Tokenizer",
    "scope",
    "keep",
    "noGrad",
    "linear",
    "attention",
    "checkGradients",
    "loadLlama",
    "saveLlama",
    "memory",
    "prepare",
  ]) {
    expect(values).toContain(name);
  }
  // Nothing internal leaks out.
  for (const name of [
    "native",
    "addon",
    "differentiable",
    "applyBinary",
    "applyUnary",
    "applyWhere",
    "untracked",
    "weightGradient",
  ]) {
    expect(values).not.toContain(name);
  }
});
