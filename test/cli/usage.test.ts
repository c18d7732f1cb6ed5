import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { reportError, runCli } from "../../lib/cli/program.js";
import {
  CheckpointError,
  DataError,
  DivergedError,
  OutOfMemoryError,
  ShapeError,
} from "../../lib/core/errors.js";

let stdout = "";
let stderr = "";
beforeEach(() => {
  stdout = stderr = "";
  vi.spyOn(process.stdout, "write").mockImplementation((text) => {
    stdout += text;
    return true;
  });
  vi.spyOn(process.stderr, "write").mockImplementation((text) => {
    stderr += text;
    return true;
  });
});
afterEach(() => {
  vi.restoreAllMocks();
  process.exitCode = undefined;
});

describe("a command line that cannot be understood exits with 2 and shows how the flag is used", () => {
  it.each([
    [
      ["plan", "x.yaml", "--tflop", "3"],
      ["unknown option '--tflop'", "--tflops <n>  achieved"],
    ],
    [
      ["plan", "x.yaml", "-x"],
      ["unknown option '-x'", "usage: llamaforge plan"],
    ],
    [["plan", "x.yaml", "-tflops", "3"], ["unknown option '-tflops'"]],
    [
      ["train", "x.yaml", "--resume", "auto", "--resume", "none"],
      ["'--resume' was given more than once"],
    ],
    [["plan", "x.yaml", "--json", "--json"], ["'--json' was given more than once"]],
    [
      ["plan", "x.yaml", "--tflops"],
      ["'--tflops <n>' argument missing", "  --tflops <n>"],
    ],
    [
      ["plan", "x.yaml", "--tflops="],
      ["'--tflops' has an empty value", "  --tflops <n>"],
    ],
    [
      ["train", "x.yaml", "--set="],
      ["'--set' has an empty value", "  --set <path=value>"],
    ],
    [["train", "x.yaml", "--resume", ""], ["'--resume' has an empty value"]],
    [
      ["train", "x.yaml", "--set", "--resume", "auto"],
      ["'--set' is missing its value before '--resume'"],
    ],
    [
      ["plan", "x.yaml", "--json=1"],
      ["unknown option '--json=1'", "  --json"],
    ],
    [
      ["plan", "x.yaml", "--tflops", "fast"],
      ["'fast' is invalid", "above 0, at most 1000000"],
    ],
    [["plan", "x.yaml", "--tflops", "0x10"], ["'0x10' is invalid"]],
    [["plan", "x.yaml", "--tflops", "NaN"], ["'NaN' is invalid"]],
    [["plan", "x.yaml", "--tflops", "1e400"], ["'1e400' is invalid"]],
    [
      ["plan", "x.yaml", "--gpus", "0"],
      ["'0' is invalid", "an integer from 1 to 65536"],
    ],
    [["plan", "x.yaml", "--gpus", "1.5"], ["'1.5' is invalid"]],
    [["plan", "x.yaml", "--gpus=-1"], ["'-1' is invalid"]],
    [
      ["plan", "x.yaml", "\u2013\u2013json"],
      ["begins with the character U+2013", "'--json'"],
    ],
    [
      ["train", "\u2014set", "steps=3", "x.yaml"],
      ["U+2014", "did you mean '--set'"],
    ],
    [
      ["train", "x.yaml", "\u2212\u2212resume=auto"],
      ["U+2212", "'--resume'", "  --resume <from>"],
    ],
    [["plan"], ["missing required argument 'config'", "usage: llamaforge plan"]],
    [["plan", "--"], ["missing required argument 'config'"]],
    [["plan", "a.yaml", "b.yaml"], ["too many arguments"]],
    [["doctor", "now"], ["too many arguments"]],
    [["generate", "model"], ["missing required argument 'prompt'"]],
    [
      ["prepare", "text.txt"],
      ["required option '--out <folder>' not specified", "  --out <folder>"],
    ],
    [
      ["prepare", "a", "--out", "b", "--tokenizer", "c", "--kind", "poems"],
      ["Allowed choices are auto, text, code, records"],
    ],
    [["trian"], ["unknown command 'trian'", "did you mean train?"]],
    [["--verson"], ["unknown option '--verson'", "--version"]],
  ])("%j", async (argv, messages) => {
    expect(await runCli(argv)).toBe(2);
    for (const message of messages) expect(stderr).toContain(message);
    expect(stderr).toContain("usage: llamaforge");
    expect(stdout).toBe("");
  });

  it("no command at all shows the help", async () => {
    expect(await runCli([])).toBe(2);
    expect(stderr).toContain("Commands:");
  });
});

describe("what was asked for and is no error exits with 0", () => {
  it.each([
    [["--help"], "Commands:"],
    [["help", "train"], "--resume <from>"],
    [["train", "--help"], "--set <path=value>"],
    [["train", "--help-config"], "optimizer.peakLr"],
    [["--version"], "0."],
    [["plan", "--", "configs/quickstart.yaml"], "6,524,160"],
    [
      ["plan", "configs/quickstart.yaml", "--set", "model.layers=1", "--set", "batch.microBatch=2"],
      "512",
    ],
  ])("%j", async (argv, message) => {
    expect(await runCli(argv)).toBe(0);
    expect(stdout).toContain(message);
    expect(stderr).toBe("");
  });

  it("plan --json is JSON", async () => {
    expect(await runCli(["plan", "configs/tinyllama-1.1b.yaml", "--json", "--tflops", "400"])).toBe(
      0,
    );
    const plan = JSON.parse(stdout);
    expect(plan.parameters.total).toBe(1_100_048_384);
    expect(plan.estimates[0].label).toBe("at 400 TFLOP/s");
  });
});

describe("other errors have their exit codes", () => {
  let folder: string;
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), "cli-"));
  });
  afterEach(() => rmSync(folder, { recursive: true, force: true }));

  it("2 for a configuration, with all of its problems", async () => {
    const file = join(folder, "run.yaml");
    writeFileSync(
      file,
      "steps: 0\nmodel: {preset: quickstart, kvHeads: 3}\ndata: {train: {a: 1}}\n",
    );
    expect(await runCli(["train", file, "--set", "peakLr=1"])).toBe(2);
    expect(stderr).toContain(`${file}: 3 problems`);
    expect(stderr).toContain("steps: expected an integer from 1 to 1000000000, got 0 (line 1)");
    expect(stderr).toContain("model.kvHeads: 3 does not divide model.heads 4 (allowed: 1, 2, 4)");
    expect(stderr).toContain(
      "--set peakLr=1: unknown option peakLr; did you mean optimizer.peakLr?",
    );
  });

  it("2 for files that are not there, naming them", async () => {
    expect(await runCli(["plan", join(folder, "none.yaml")])).toBe(2);
    expect(stderr).toContain("none.yaml");
    expect(await runCli(["report", folder])).toBe(2);
    expect(stderr).toContain("is not the folder of a run");
    expect(await runCli(["generate", folder, "x", "--device", "gpu"])).toBe(2);
    expect(stderr).toContain('expected "cpu", "cuda" or "cuda:N", got "gpu"');
  });

  it.each([
    [new DataError("d"), 3],
    [new CheckpointError("c"), 4],
    [new DivergedError("n"), 5],
    [new OutOfMemoryError("m"), 70],
  ])("a typed error is its message alone: %s", (error, code) => {
    expect(reportError(error)).toBe(code);
    expect(stderr).toBe(`llamaforge: ${error.message}\n`);
  });

  it.each([
    new TypeError("x is not a function"),
    new ShapeError("[add] shapes"),
    "thrown text",
    undefined,
  ])("a bug shows its stack and asks for an issue: %s", (error) => {
    expect(reportError(error)).toBe(70);
    expect(stderr).toContain(error instanceof Error ? (error.stack as string) : String(error));
    expect(stderr).toContain("Please open an issue");
  });
});
