// `train --dashboard --tensorboard`: a real run is watched, saved and stopped from outside.
import { spawn } from "node:child_process";
import { once } from "node:events";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { buildLibrary, root } from "./build.js";
import { cliFile, llamaforge } from "./run.js";

let folder: string;
const tokenizer = join(root, "assets/quickstart/tokenizer.json");
const config = `
name: tiny
precision: fp32
threads: 1
steps: 20000
model: {vocabSize: 4096, hiddenSize: 32, intermediateSize: 64, layers: 1, heads: 2, kvHeads: 1, contextLength: 32}
data: {train: {text: 1}}
batch: {microBatch: 1}
optimizer: {peakLr: 1.0e-3, warmupSteps: 2}
checkpoint: {every: 0}
evaluate: {every: 0, batches: 1}
`;

beforeAll(async () => {
  buildLibrary();
  folder = mkdtempSync(join(tmpdir(), "llamaforge-watch-"));
  mkdirSync(join(folder, "texts"));
  for (let i = 0; i < 40; i++) {
    const text = `Address ${i}. The people of the United States have a government. `.repeat(20);
    writeFileSync(join(folder, "texts", `${i}.txt`), text);
  }
  writeFileSync(join(folder, "tiny.yaml"), config);
  const prepare = ["prepare", "texts", "--out", "text", "--tokenizer", tokenizer, "--json"];
  const { code, stdout, stderr } = await llamaforge(prepare, { cwd: folder });
  expect(code, stderr).toBe(0);
  expect(JSON.parse(stdout).splits.train.documents).toBeGreaterThan(30);
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function train(...options: string[]) {
  const child = spawn(process.execPath, [cliFile, "train", "tiny.yaml", ...options], {
    cwd: folder,
  });
  const said = { stdout: "", stderr: "" };
  child.stdout.on("data", (chunk) => {
    said.stdout += chunk;
  });
  child.stderr.on("data", (chunk) => {
    said.stderr += chunk;
  });
  return { child, said, ended: once(child, "close") };
}

describe("train --dashboard", () => {
  it("saves and stops at the page's requests, and writes TensorBoard's file", async () => {
    const { child, said, ended } = train("--set", "out=watched", "--dashboard", "--tensorboard");
    try {
      await vi.waitFor(() => expect(said.stdout).toMatch(/^step 1\//m), 30_000);
      const [, base = "", token = ""] =
        /dashboard {2}(http:\/\/127\.0\.0\.1:\d+\/)#token=(\w+)/.exec(said.stdout) ?? [];
      const post = (action: string) =>
        fetch(base + action, { method: "POST", headers: { authorization: `Bearer ${token}` } });
      const checkpoints = () =>
        readdirSync(join(folder, "watched")).filter((n) => /^step-\d+$/.test(n));
      expect(checkpoints()).toEqual([]);
      expect((await post("save")).status).toBe(202);
      await vi.waitFor(() => expect(checkpoints()).toHaveLength(1), 30_000);
      expect(await (await fetch(`${base}metrics`)).text()).toContain("llamaforge_train_loss");
      expect(await (await fetch(base)).text()).toContain("run-data");
      expect((await post("stop")).status).toBe(202);
      await ended;
    } finally {
      child.kill("SIGKILL");
    }
    expect(child.exitCode, said.stderr).toBe(75);
    expect(said.stdout).toContain("asked by the dashboard: finishing the step and saving");
    const [file = ""] = readdirSync(join(folder, "watched/tensorboard"));
    expect(readFileSync(join(folder, "watched/tensorboard", file)).includes("train/loss")).toBe(
      true,
    );
  });

  it("a port in use is a notice, and the run goes on", async () => {
    const other = createServer().listen(0, "127.0.0.1");
    await once(other, "listening");
    const { port } = other.address() as { port: number };
    const short = ["--set", "steps=4", "--set", "optimizer.decaySteps=4", "--set", "out=blocked"];
    const { child, said, ended } = train(...short, "--dashboard", String(port));
    await ended;
    other.close();
    expect(said.stderr).toContain(
      `note: no dashboard: the dashboard cannot listen at port ${port}`,
    );
    expect(child.exitCode).toBe(0);
    expect(existsSync(join(folder, "blocked/report.html"))).toBe(true);
  });
});

describe("facts as JSON", () => {
  it("doctor and verify", async () => {
    const doctor = await llamaforge(["doctor", "--json"]);
    const { healthy, findings } = JSON.parse(doctor.stdout);
    expect(healthy).toBe(true);
    expect(findings["native addon"].join()).toContain("kernels for");
    const verify = await llamaforge(["verify", "text", "--json"], { cwd: folder });
    expect(JSON.parse(verify.stdout)).toMatchObject({ folder: "text", complete: true });
    writeFileSync(join(folder, "text", "dataset.json"), "{}");
    const broken = await llamaforge(["verify", "text", "--json"], { cwd: folder });
    expect(broken.code).toBe(3);
    expect(JSON.parse(broken.stdout)).toMatchObject({ complete: false });
  });
});
