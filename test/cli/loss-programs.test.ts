/** bench/loss trains pairs of runs on GPUs. These tests run its programs on the CPU with little work. */
import { execFile } from "node:child_process";
import { cp, mkdir, readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { beforeAll, expect, test } from "vitest";
import { tinyData } from "../support/tiny-run.js";
import { buildLibrary, root } from "./build.js";

let folder: string;
let data: string;
beforeAll(async () => {
  buildLibrary();
  ({ folder, data } = await tinyData());
});

const program = async (name: string, args: string[]) =>
  await promisify(execFile)(process.execPath, [join(root, "bench/loss", name), ...args], {
    env: { ...process.env, LLAMAFORGE_THREADS: "1" },
  });

test("collects each text once, and leaves out what is no text", async () => {
  const from = join(folder, "collected");
  await cp(join(folder, "texts"), join(from, "texts"), { recursive: true });
  await cp(join(folder, "texts"), join(from, "copies"), { recursive: true });
  await writeFile(join(from, "short.py"), "x = 1\n");
  await writeFile(join(from, "bytes.py"), Buffer.alloc(1000, 0xff));
  await writeFile(join(from, "picture.png"), "P".repeat(1000));
  await mkdir(join(from, "node_modules"));
  await writeFile(join(from, "node_modules/other.js"), "// not ours\n".repeat(100));
  const out = join(folder, "lines");
  const { stdout } = await program("collect.mjs", [out, from]);
  const texts = await readdir(join(folder, "texts"));
  expect(stdout).toContain(`${texts.length} of ${texts.length} documents`);
  expect(stdout).toContain(`${texts.length} files were copies`);
  const lines = (await readFile(join(out, "part-00.jsonl"), "utf8")).trim().split("\n");
  const documents = lines.map((line) => JSON.parse(line).text);
  const expected = await Promise.all(
    texts.map((name) => readFile(join(folder, "texts", name), "utf8")),
  );
  expect(documents.sort()).toEqual(expected.sort());
});

test("compares runs from equal weights, and draws them", { timeout: 300_000 }, async () => {
  const json = join(folder, "loss.json");
  const { stdout } = await program("run.mjs", [
    ...["--data", data, "--out", join(folder, "runs"), "--json", json],
    ...["--runs", "bf16,bf16-again,fp8", "--devices", "cpu", "--preset", "quickstart"],
    ...["--tokens", "1024", "--sequence-length", "32", "--micro-batch", "2", "--accumulation", "1"],
    ...["--evaluations", "4", "--validation", "2", "--until", "8"],
  ]);
  expect(stdout).toMatch(/fp8 beside bf16: validation over the last fifth -?\d/);
  const { runs, recipe } = JSON.parse(await readFile(json, "utf8"));
  expect(recipe.steps).toBe(16);
  const [bf16, again, fp8] = runs;
  for (const run of runs) {
    expect(run.validation.map(({ step }: { step: number }) => step)).toEqual([4, 8]);
    expect(run.notices).toEqual([]);
  }
  // The same sums in another order, and products in fp8: near, and not equal.
  for (const other of [again, fp8]) {
    for (const share of other.validationApart) expect(Math.abs(share)).toBeLessThan(0.02);
  }
  expect(fp8.validation).not.toEqual(bf16.validation);
  expect(fp8.fp8[0].largest["down.gradient"].length).toBeGreaterThan(0);
  expect(bf16.fp8).toEqual([]);
  const svg = join(folder, "loss.svg");
  await program("plot.mjs", [json, svg]);
  const drawn = await readFile(svg, "utf8");
  for (const name of ["bf16-again", "fp8", "quickstart"]) expect(drawn).toContain(name);
  expect(drawn).not.toContain("NaN");
});
