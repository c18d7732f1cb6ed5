// The code blocks of the pages that teach a task run as they stand, one after the other, in a folder
// of a user who has installed the package. The quickstart itself is shortened.
import { spawnSync } from "node:child_process";
import {
  chmodSync,
  cpSync,
  mkdirSync,
  mkdtempSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import ts from "typescript";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { buildLibrary, root } from "../cli/build.js";
import { cliFile } from "../cli/run.js";
import { codeBlocks } from "./doc-pages.js";

const minutes = 60_000;
const base = mkdtempSync(join(tmpdir(), "llamaforge-pages-"));
const bin = join(base, "bin");

/** Options of recipes for GPUs, so that a CPU runs them in seconds. */
const shortened = [
  ...["device=cpu", "precision=fp32", "steps=4", "optimizer.warmupSteps=1", "batch.microBatch=2"],
  ...["batch.accumulation=1", "data.sequenceLength=96", "evaluate.batches=1", "checkpoint.every=2"],
  "sample.maxTokens=4",
]
  .map((option) => `--set ${option}`)
  .join(" ");

/** Programs that stand for npm's: the package is installed already. */
const programs = {
  npm: "exit 0",
  npx: `shift
case "$1" in quickstart) set -- "$@" --steps 2 --set evaluate.batches=1 --set sample.maxTokens=4 ;; esac
case "$1 $2" in "bench parity") exit 0 ;; esac
case "$1 $2" in "train configs/"*) set -- "$@" ${shortened} ;; esac
exec "${process.execPath}" "${cliFile}" "$@"`,
};

function withoutTypes(code: string): string {
  const { ESNext } = ts.ModuleKind;
  const compilerOptions = { module: ESNext, target: ts.ScriptTarget.ES2022 };
  return ts.transpileModule(code, { compilerOptions }).outputText;
}

function userFolder(name: string): string {
  const folder = join(base, name);
  mkdirSync(join(folder, "node_modules"), { recursive: true });
  mkdirSync(join(folder, "texts"));
  symlinkSync(root, join(folder, "node_modules/llamaforge"));
  cpSync(join(root, "configs"), join(folder, "configs"), { recursive: true });
  const records = [];
  for (let i = 0; i < 40; i++) {
    const text = `Address ${i}. The people of the United States have a government. `.repeat(40);
    writeFileSync(join(folder, "texts", `${i}.txt`), text);
    records.push(JSON.stringify({ lang: "en", body: text }));
  }
  writeFileSync(join(folder, "records.jsonl"), `${records.join("\n")}\n`);
  if (name === "onward") makeModels(folder);
  return folder;
}

/** What the pages on going on from a model expect: two models, texts, chats and pairs. */
function makeModels(folder: string): void {
  cpSync(join(folder, "texts"), join(folder, "notes"), { recursive: true });
  mkdirSync(join(folder, "general"));
  for (let i = 0; i < 20; i++) {
    const text = `Rivers run to the sea, and river ${i} runs for ${i * 7} miles. `.repeat(30);
    writeFileSync(join(folder, "general", `${i}.txt`), text);
  }
  const lines = (of: (n: number) => object) =>
    Array.from({ length: 30 }, (_, n) => `${JSON.stringify(of(n))}\n`).join("");
  const said = (role: string, content: string) => ({ role, content });
  const chat = (n: number) => [said("user", `Say ${n}.`), said("assistant", `It is ${n}.`)];
  writeFileSync(
    join(folder, "chats.jsonl"),
    lines((n) => ({ messages: chat(n) })),
  );
  const pair = (n: number) => ({
    prompt: chat(n).slice(0, 1),
    chosen: chat(n).slice(1),
    rejected: [said("assistant", `Never ${n}.`)],
  });
  writeFileSync(join(folder, "pairs.jsonl"), lines(pair));
  const program = `import { Llama, presets, saveModel, Tokenizer } from "llamaforge";
    const small = { vocabSize: 4096, hiddenSize: 48, intermediateSize: 96, heads: 3, kvHeads: 1 };
    const shape = { ...presets["smollm2-135m"], ...small, layers: 2, headSize: 16 };
    const tokenizer = await Tokenizer.load("node_modules/llamaforge/assets/quickstart");
    for (const name of ["base", "SmolLM2-135M"]) {
      await saveModel("models/" + name, await Llama.create(shape, { seed: 1 }), { tokenizer });
    }`;
  writeFileSync(join(folder, "make.mjs"), program);
  mkdirSync(join(folder, "models"));
  const { status, stderr } = spawnSync(process.execPath, ["make.mjs"], { cwd: folder });
  if (status !== 0) throw new Error(String(stderr));
  const template =
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}" +
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}";
  writeFileSync(join(folder, "models/base/chat_template.jinja"), template);
}

beforeAll(() => {
  buildLibrary();
  mkdirSync(bin);
  for (const [name, text] of Object.entries(programs)) {
    writeFileSync(join(bin, name), `#!/bin/sh\n${text}\n`);
    chmodSync(join(bin, name), 0o755);
  }
});
afterAll(() => rmSync(base, { recursive: true, force: true }));

/** Pages in the order in which a user meets them. Later ones need the runs of earlier ones. */
const courses = {
  first: [
    "README.md",
    "docs/quickstart.md",
    "docs/resume.md",
    "docs/watching.md",
    "docs/embed.md",
    "docs/custom-models.md",
    "docs/recipes.md",
    "docs/memory.md",
    "docs/one-gpu.md",
  ],
  own: ["docs/your-own-data.md"],
  onward: ["docs/continue.md", "docs/fine-tune.md", "docs/preferences.md"],
};

describe.each(Object.entries(courses))("course %s", (name, pages) => {
  let folder: string;
  beforeAll(() => {
    folder = userFolder(name);
  });

  test.each(pages)("%s", { timeout: 10 * minutes }, (page) => {
    const blocks = codeBlocks(page);
    let count = 0;
    for (const { language, code } of blocks) {
      if (!["sh", "ts"].includes(language)) continue;
      const file = join(folder, `block-${count++}.mjs`);
      if (language === "ts") writeFileSync(file, withoutTypes(code));
      const [command, args] =
        language === "ts" ? [process.execPath, [file]] : ["bash", ["-ec", code]];
      const { status, stdout, stderr } = spawnSync(command as string, args as string[], {
        cwd: folder,
        encoding: "utf8",
        env: { ...process.env, PATH: `${bin}:${process.env.PATH}` },
      });
      expect(status, `${page}:\n${code}\n${stdout}\n${stderr}`).toBe(0);
    }
    expect(count).toBeGreaterThan(0);
  });
});
