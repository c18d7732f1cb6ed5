import { spawn } from "node:child_process";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { saveModel } from "../../lib/checkpoint/model.js";
import { Tokenizer } from "../../lib/data/tokenizer.js";
import { Llama } from "../../lib/model/llama.js";
import { llamaConfig } from "../../lib/model/llama-config.js";
import { writeRows } from "../eval/rows-of-tests.js";
import { buildLibrary, root } from "./build.js";
import { cliFile, llamaforge } from "./run.js";

let folder: string;
let data: string;
let model: string;

beforeAll(async () => {
  buildLibrary();
  folder = await mkdtemp(join(tmpdir(), "llamaforge-eval-"));
  data = join(folder, "rows");
  await writeRows(data);
  model = join(folder, "model");
  const sizes = { hiddenSize: 32, intermediateSize: 48, layers: 2, heads: 2, kvHeads: 1 };
  const rest = { ropeTheta: 10_000, rmsNormEps: 1e-5, tieEmbeddings: false, contextLength: 96 };
  const made = await Llama.create(llamaConfig({ vocabSize: 4096, ...sizes, ...rest }), { seed: 4 });
  await saveModel(model, made, {
    tokenizer: await Tokenizer.load(join(root, "assets/quickstart")),
  });
  made.dispose();
});
afterAll(() => rm(folder, { recursive: true, force: true }));

const evaluateIn = (out: string, ...args: string[]) =>
  llamaforge(["eval", model, "--data", data, "--out", join(folder, out), ...args]);
const read = (out: string) => readFileSync(join(folder, out), "utf8");

describe("eval", () => {
  it("prints a table with standard errors, and published scores beside it", async () => {
    const args = ["--tasks", "commonsense,arc_easy", "--compare", "--log-samples"];
    const { code, stdout, stderr } = await evaluateIn("table.json", ...args);
    expect(stderr).toMatch(/^hellaswag \(1 of 7\): 8 requests$/m);
    expect(code).toBe(0);
    expect(stdout).toMatch(/^commonsense +N\/A +0 +16 +average +0\.\d{4} +0\.\d{4}$/m);
    expect(stdout).toMatch(/^ {2}arc_easy +1 +0 +3 +acc +\d\.\d{4} +0\.\d{4}$/m);
    expect(stdout).toMatch(/2 prompts were longer than the context of 96 tokens, .*boolq 2/);
    expect(stdout).toMatch(/^TinyLlama-1\.1B, 3T .* 52\.97 +published$/m);
    const { results, samples } = JSON.parse(read("table.json"));
    expect(results.piqa["acc,none"]).toBeGreaterThanOrEqual(0);
    expect(samples.piqa.length).toBe(3);
    expect(existsSync(join(folder, "table.json.unfinished"))).toBe(false);
  });

  it("goes on from finished tasks, and writes the file of one run", async () => {
    const whole = ["--tasks", "arc_easy,piqa,winogrande", "--log-samples"];
    expect((await evaluateIn("whole.json", ...whole)).code).toBe(0);
    // The rows of the second task are damaged at first.
    const rows = join(data, "piqa/validation.jsonl");
    const text = readFileSync(rows);
    await writeFile(rows, '{"goal":"x"}\n');
    const stopped = await evaluateIn("parts.json", ...whole);
    expect(stopped.code).toBe(3);
    expect(stopped.stderr).toContain("piqa");
    await writeFile(rows, text);
    const unfinished = join(folder, "parts.json.unfinished");
    expect(readdirSync(unfinished).filter((name) => name.startsWith("task-")).length).toBe(1);
    const other = await evaluateIn("parts.json", ...whole, "--limit", "2");
    expect(other.code).toBe(2);
    expect(other.stderr).toMatch(/limit: all there, 2 now/);
    expect(other.stderr).toContain("--start-over");
    const rest = await evaluateIn("parts.json", ...whole);
    expect(rest.stderr).not.toContain("arc_easy");
    expect(rest.code).toBe(0);
    expect(read("parts.json")).toBe(read("whole.json"));
    const again = await evaluateIn("parts.json", ...whole);
    expect(again.code).toBe(2);
    expect(again.stderr).toContain("--overwrite");
  });

  it("says where the scores are if a file cannot be written", async () => {
    const nowhere = await llamaforge(["eval", model, "--tasks", "piqa", "--out", "/proc/x.json"]);
    expect(nowhere.code).toBe(2);
    expect(nowhere.stderr).toContain("--out /proc/x.json: cannot write there: ENOENT");
    // Files of this process hold a few kilobytes at most, as on a disk that becomes full.
    const limited = (out: string, blocks: number, ...args: string[]) => {
      const given = ["eval", model, "--data", data, "--out", join(folder, out), ...args];
      const shell = `ulimit -f ${blocks}; exec "$0" "$@"`;
      return new Promise<{ code: number | null; stdout: string; stderr: string }>((resolve) => {
        const child = spawn("sh", ["-c", shell, process.execPath, cliFile, ...given], {
          stdio: ["ignore", "pipe", "pipe"],
        });
        let [stdout, stderr] = ["", ""];
        child.stdout.on("data", (chunk: Buffer) => {
          stdout += chunk;
        });
        child.stderr.on("data", (chunk: Buffer) => {
          stderr += chunk;
        });
        child.on("close", (code) => resolve({ code, stdout, stderr }));
      });
    };
    const kept = await limited("kept.json", 2, "--tasks", "piqa", "--log-samples");
    expect(kept.code).toBe(2);
    expect(kept.stderr).toMatch(/kept\.json: cannot keep the scores of piqa: EFBIG/);
    expect(kept.stderr).toContain("kept.json.unfinished; the same command goes on from them");
    const shown = await limited("shown.json", 2, "--tasks", "piqa");
    expect(shown.code).toBe(2);
    expect(shown.stdout).toMatch(/^piqa +1 +0 +3 +acc/m);
    expect(shown.stderr).toMatch(/shown\.json: cannot write there: EFBIG/);
    const rest = await evaluateIn("shown.json", "--tasks", "piqa");
    expect(rest.code).toBe(0);
    expect(rest.stderr).not.toContain("requests");
  });

  it("keeps finished tasks at a signal, and ends with 75", async () => {
    const tasks = ["--tasks", "arc_easy,piqa,winogrande,boolq,openbookqa", "--batch", "1"];
    const args = ["eval", model, "--data", data, "--out", join(folder, "signal.json"), ...tasks];
    const child = spawn(process.execPath, [cliFile, ...args], {
      stdio: ["ignore", "pipe", "pipe"],
    });
    let stderr = "";
    child.stderr.on("data", (chunk: Buffer) => {
      const before = stderr.includes("piqa (2");
      stderr += chunk;
      if (!before && stderr.includes("piqa (2")) child.kill("SIGINT");
    });
    const code = await new Promise((resolve) => child.on("close", resolve));
    expect(code).toBe(75);
    expect(stderr).toContain("stopped by SIGINT; the same command goes on");
    const rest = await evaluateIn("signal.json", ...tasks);
    expect(rest.code).toBe(0);
    expect(rest.stderr).not.toContain("arc_easy");
  });

  it("gives the same scores as two ranks", async () => {
    const args = ["--tasks", "arc_easy,piqa,boolq", "--batch", "2", "--log-samples"];
    expect((await evaluateIn("one.json", ...args)).code).toBe(0);
    const own = ["eval", model, "--data", data, "--out", join(folder, "two.json"), ...args];
    const { code, stderr } = await llamaforge(["launch", "--nproc", "2", "--", ...own]);
    expect(stderr).not.toMatch(/rank|llamaforge:/);
    expect(code).toBe(0);
    expect(read("two.json")).toBe(read("one.json"));
  });

  it.each([
    [["--tasks", "piqa", "--batch", "some"], 2, /Expected auto, or an integer/],
    [["--tasks", "piqa", "--tokenizer", "/nowhere"], 3, /\/nowhere/],
  ])("%j is refused with %i", async (args, expected, message) => {
    const { code, stderr } = await llamaforge(["eval", model, "--data", data, ...args]);
    expect(stderr).toMatch(message);
    expect(code).toBe(expected);
  });

  it("needs a folder with a model and its tokenizer", async () => {
    const none = await llamaforge(["eval", data, "--tasks", "piqa", "--data", data]);
    expect(none.code).toBe(2);
    expect(none.stderr).toContain("expected a folder with config.json");
    await rm(join(model, "tokenizer.json"));
    const bare = await llamaforge(["eval", model, "--tasks", "piqa", "--data", data]);
    expect(bare.code).toBe(3);
    expect(bare.stderr).toContain("tokenizer.json");
  });
});
