// Foreign text reaches a terminal only with its control characters made visible: file names,
// messages of parsers, prompts and generated text.
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { saveModel } from "../../lib/checkpoint/model.js";
import { bounded } from "../../lib/cli/terminal.js";
import { visible, visibleLine } from "../../lib/core/visible.js";
import { Tokenizer } from "../../lib/data/tokenizer.js";
import { Llama } from "../../lib/model/llama.js";
import { tinyConfig } from "../support/tiny-run.js";
import { buildLibrary, root } from "./build.js";
import { cliFile } from "./run.js";

const evil = "\u001b]0;owned\u0007\u009b31m\u202etxt\u007f\r";
let folder: string;
beforeAll(async () => {
  buildLibrary();
  folder = mkdtempSync(join(tmpdir(), "terminal-"));
  const model = await Llama.create(tinyConfig("data", "run").model, { seed: 1 });
  await saveModel(join(folder, "model"), model);
  await (await Tokenizer.load(join(root, "assets/quickstart"))).copyTo(join(folder, "model"));
  model.dispose();
  writeFileSync(join(folder, "keys.yaml"), `"${evil.replace("\r", "")}": 1\nsteps: 1\n`);
  writeFileSync(join(folder, "value.yaml"), 'steps: "\\e[2J\\x9b\\u202e"\n');
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const quoted = (text: string) => `'${text.replaceAll("'", "'\\''")}'`;

/** A command's output on a terminal, without carriage returns and the cursor movements of a bar. */
async function onTerminal(args: string[]): Promise<string> {
  const command = [process.execPath, cliFile, ...args].map(quoted).join(" ");
  const child = spawn("script", ["-qec", command, "/dev/null"], {
    cwd: folder,
    env: { ...process.env, SHELL: "/bin/sh" },
    stdio: ["ignore", "pipe", "inherit"],
  });
  let output = "";
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    output += text;
  });
  await once(child, "close");
  // biome-ignore lint/suspicious/noControlCharactersInRegex: it removes cursor movements
  return output.replaceAll("\r\n", "\n").replaceAll(/\u001b(\[[?\d;]*[A-Za-z]|[78])/g, "");
}

// biome-ignore lint/suspicious/noControlCharactersInRegex: the test looks for control characters
const raw = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/;

it.each([
  ["a configuration's name", ["plan", `${evil}.yaml`]],
  ["its keys", ["plan", "keys.yaml"]],
  ["its values", ["plan", "value.yaml"]],
  ["an unknown option", ["plan", `--${evil}`]],
  ["an override", ["plan", "value.yaml", "--set", `${evil}=1`]],
  ["a run's folder", ["report", `${evil}`]],
  ["a data set's folder", ["verify", `${evil}`]],
  ["an input", ["prepare", `${evil}`, "--out", `out${evil}`, "--tokenizer", "model"]],
  ["a prompt", ["generate", "model", `a${evil}b`, "--max-tokens", "2"]],
])("%s reaches a terminal without its control characters", async (_, args) => {
  const output = await onTerminal(args);
  expect(output).not.toBe("");
  expect(output).not.toMatch(raw);
  expect(output).toMatch(/\\x1b|\\u202e/);
});

it("a pipe gets generated text as it is", () => {
  const args = [cliFile, "generate", "model", `a${evil}b`, "--max-tokens", "2"];
  const { stdout, status } = spawnSync(process.execPath, args, { cwd: folder, encoding: "utf8" });
  expect(status).toBe(0);
  expect(stdout.startsWith(`a${evil}b`)).toBe(true);
});

it("makes control characters visible and leaves the rest", () => {
  expect(visible("a\tb\n")).toBe("a\tb\n");
  expect(visible("\u001b[0m\u0000\u0085\u202e\u{e0041}")).toBe(
    "\\x1b[0m\\x00\\x85\\u202e\\u{e0041}",
  );
  expect(visibleLine("a\nb")).toBe("a\\nb");
  expect(visible("日本 👩‍👩‍👧 é ا")).toBe("日本 👩‍👩‍👧 é ا");
});

it("bounds what a message fills", () => {
  const lines = bounded("problem\n".repeat(100_000)).split("\n");
  expect(lines.length).toBeLessThan(70);
  expect(lines.at(-1)).toMatch(/and \d+ more lines/);
  expect(bounded("x".repeat(10 ** 7)).length).toBeLessThan(3000);
  const keys = Array.from({ length: 5000 }, (_, i) => `k${i}: 1`).join("\n");
  writeFileSync(join(folder, "many.yaml"), keys);
  const { stderr, status } = spawnSync(process.execPath, [cliFile, "plan", "many.yaml"], {
    cwd: folder,
    encoding: "utf8",
  });
  expect(status).toBe(2);
  expect(stderr).toMatch(/500\d problems/);
  expect(stderr).toMatch(/and [\d,]+ more/);
  expect(stderr.length).toBeLessThan(10_000);
});
