// Something else lies where a small file is expected, above all a FIFO without a writer. Each
// command ends by itself with the exit code of its kind of input and an error that names the file.
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { cpSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { createServer, type Server } from "node:net";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { stringify } from "yaml";
import { readSmallFile, readSmallFileSync } from "../../lib/files/small-file.js";
import { tinyConfig, tinyData } from "../support/tiny-run.js";
import { buildLibrary, root } from "./build.js";
import { type CliResult, cliFile } from "./run.js";

const kinds = ["fifo", "device", "folder", "socket", "empty"] as const;
type Kind = (typeof kinds)[number];
const servers: Server[] = [];

async function put(path: string, kind: Kind): Promise<void> {
  rmSync(path, { force: true, recursive: true });
  if (kind === "fifo") execFileSync("mkfifo", [path]);
  else if (kind === "device") symlinkSync("/dev/zero", path);
  else if (kind === "folder") mkdirSync(path);
  else if (kind === "empty") writeFileSync(path, "");
  else {
    const server = createServer().listen(path);
    servers.push(server);
    await once(server, "listening");
  }
}

/** Runs the command line. A command that hangs is killed and then has no exit code. */
async function run(args: string[]): Promise<CliResult> {
  const child = spawn(process.execPath, [cliFile, ...args], { cwd: folder });
  const timer = setTimeout(() => child.kill("SIGKILL"), 100_000);
  const result: CliResult = { code: null, stdout: "", stderr: "" };
  child.stderr.on("data", (chunk: Buffer) => {
    result.stderr += chunk;
  });
  child.stdout.resume();
  [result.code] = (await once(child, "close")) as [number | null];
  clearTimeout(timer);
  return result;
}

let folder: string;
const step = "run/step-0000000002";
const tokenizer = join(root, "assets/quickstart");
beforeAll(async () => {
  buildLibrary();
  folder = (await tinyData()).folder;
  const write = (name: string, config: object) =>
    writeFileSync(join(folder, name), stringify(config));
  const optimizer = { peakLr: 5e-3, warmupSteps: 1 };
  const steps = { steps: 2, evaluate: { every: 0 }, optimizer };
  write("run.yaml", tinyConfig("data", "run", steps));
  const description = { format: "nanogpt", train: "data/*.bin", tokenizer };
  write("foreign.yaml", description);
  write("train-foreign.yaml", tinyConfig("foreign.yaml", "run2", steps));
  write("recipe.yaml", { inputs: [{ path: "texts" }] });
  const { model: _, ...rest } = tinyConfig("data", "run3", steps);
  await prepareChats();
  write("chats.yaml", tinyConfig("chats", "run5", steps));
  for (const name of ["keys.txt", "task.yaml"]) writeFileSync(join(folder, name), "k\n");
  write("init.yaml", { ...rest, init: { from: step } });
  expect((await run(["train", "run.yaml"])).stderr).toBe("");
}, 120_000);
afterAll(() => {
  for (const server of servers) server.close();
  rmSync(folder, { recursive: true, force: true });
});

/** A data set of chats, from `chats.jsonl` with the template `t.jinja`. */
async function prepareChats(): Promise<void> {
  const chat = ["user", "assistant"].map((role) => ({ role, content: "The farmer builds roads" }));
  const record = `${JSON.stringify({ messages: chat })}\n`;
  writeFileSync(join(folder, "chats.jsonl"), record.repeat(40));
  const template =
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}" +
    "{% if add_generation_prompt %}assistant: {% endif %}";
  writeFileSync(join(folder, "t.jinja"), template);
  const options = ["--kind", "chat", "--tokenizer", tokenizer, "--chat-template", "t.jinja"];
  const made = await run(["prepare", "chats.jsonl", "--out", "chats", ...options]);
  expect(made.code, made.stderr).toBe(0);
}

/** The file, the change to it, and the exit code. */
const cases: [file: string, command: string, code: number][] = [
  ["run.yaml", "train run.yaml", 2],
  ["run.yaml", "plan run.yaml", 2],
  ["recipe.yaml", "prepare --config recipe.yaml --out new --tokenizer data", 2],
  ["foreign.yaml", "train train-foreign.yaml", 3],
  ["data/dataset.json", "train run.yaml", 3],
  ["data/dataset.json", "verify data", 3],
  ["data/tokenizer.json", "train run.yaml", 3],
  ["data/tokenizer.json", "prepare texts --out new --tokenizer data", 3],
  ["data/tokenizer_config.json", "prepare texts --out new --tokenizer data", 3],
  ["data/special_tokens_map.json", "prepare texts --out new --tokenizer data", 3],
  ["data/train-00000.idx", "train run.yaml", 3],
  ["data/train-00000.bin", "train run.yaml", 3],
  ["run/run.json", "report run", 2],
  ["run/metrics.jsonl", "report run", 2],
  ["run/run.lock", "train run.yaml --set steps=3", 2],
  ["new.lock", "prepare texts --out new --tokenizer data", 2],
  [`${step}/manifest.json`, `verify ${step}`, 4],
  [`${step}/trainer.json`, `verify ${step}`, 4],
  [`${step}/config.json`, `generate ${step} x`, 4],
  [`${step}/config.json`, "train init.yaml", 2],
  [`${step}/tokenizer.json`, `generate ${step} x`, 3],
  [`${step}/model.safetensors`, `generate ${step} x`, 4],
  [`${step}/model.safetensors.index.json`, `generate ${step} x`, 4],
  ["chats/chat_template.jinja", "train chats.yaml", 3],
  [
    "t.jinja",
    "prepare chats.jsonl --kind chat --out new --tokenizer data --chat-template t.jinja",
    3,
  ],
  ["keys.txt", `serve ${step} --port 0 --api-key-file keys.txt`, 2],
  ["task.yaml", `eval ${step} --tasks task.yaml --data texts`, 3],
];

/** Every file becomes a FIFO. Every third also becomes one of the other kinds, in turn. */
const table = cases.flatMap(([file, command, code], at) =>
  [...new Set<Kind>(["fifo", at % 3 === 0 ? (kinds[1 + ((at / 3) % 4)] as Kind) : "fifo"])]
    // An empty lock is valid, and so is a run without recorded steps.
    .filter((kind) => !(kind === "empty" && /\.lock$|metrics/.test(file)))
    .map((kind) => [kind, file, command, code] as const),
);

describe("an odd file", () => {
  it.each(table)(
    "%s as %s: %s exits with %i",
    async (kind, file, command, code) => {
      const kept = mkdtempSync(join(tmpdir(), "odd-"));
      const path = join(folder, file);
      const part = file.split("/")[0] as string;
      cpSync(join(folder, part), join(kept, part), {
        recursive: true,
        errorOnExist: false,
        force: true,
        ...(part === "new.lock" && { filter: () => false }),
      });
      try {
        await put(path, kind);
        const result = await run(command.split(" "));
        expect(result.stderr).toContain(basename(file));
        expect(result.stderr).not.toContain("This is a bug");
        expect(result.code, result.stderr).toBe(code);
      } finally {
        rmSync(join(folder, part), { recursive: true, force: true });
        if (part !== "new.lock") cpSync(join(kept, part), join(folder, part), { recursive: true });
        rmSync(kept, { recursive: true, force: true });
      }
    },
    120_000,
  );

  it("a FIFO as metrics.jsonl costs a run its records, with a warning, and nothing else", async () => {
    mkdirSync(join(folder, "run4"));
    await put(join(folder, "run4/metrics.jsonl"), "fifo");
    const { code, stderr } = await run(["train", "run.yaml", "--set", "out=run4"]);
    expect(stderr).toContain("cannot write run4/metrics.jsonl");
    expect(code).toBe(0);
  }, 120_000);
});

describe("reading a small file", () => {
  it.each(kinds)("refuses a %s", async (kind) => {
    const path = join(folder, `odd-${kind}`);
    await put(path, kind);
    const message = { fifo: /a FIFO/, device: /a device/, folder: /a folder/, socket: /a socket/ };
    const expected = kind === "empty" ? /is empty/ : message[kind];
    await expect(readSmallFile(path, { limit: 100 })).rejects.toThrow(expected);
    expect(() => readSmallFileSync(path, { limit: 100 })).toThrow(expected);
  });

  it("refuses what is larger than its limit, and a link where none may be", async () => {
    const path = join(folder, "large");
    writeFileSync(path, "12345");
    symlinkSync(path, join(folder, "link"));
    await expect(readSmallFile(path, { limit: 4 })).rejects.toThrow(/5 bytes.*limit of 4/);
    expect((await readSmallFile(join(folder, "link"), { limit: 5 })).toString()).toBe("12345");
    const options = { limit: 5, followLinks: false };
    await expect(readSmallFile(join(folder, "link"), options)).rejects.toThrow(/symbolic link/);
  });
});
