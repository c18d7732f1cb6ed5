// docs/faults.md, row D6: encoder processes die, do not start, or lose their terminal. `prepare`
// either continues or ends with an error that says so and keeps the finished work. It never waits
// for an answer that does not come.
import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { readdir, readFile, truncate } from "node:fs/promises";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { promisify } from "node:util";
import { describe, expect, it, onTestFinished } from "vitest";
import { type PrepareOptions, prepare } from "../../lib/prepare/prepare.js";
import {
  compileLibrary,
  contentsOf,
  documents,
  quickstart,
  temporaryFolder,
  writeFiles,
} from "../data/support.js";

/** The last line of the program. */
interface Outcome {
  name?: string;
  code?: string;
  message?: string;
  resumed?: number;
}

/**
 * Prepares, reports each batch and the outcome. It survives the loss of its terminal, as the CLI
 * does.
 */
const program = `
  const { prepare } = await import(process.argv[1]);
  HARM
  const options = JSON.parse(process.argv[2]);
  const say = (line) => process.stdout.write(line + "\\n");
  process.on("SIGHUP", () => {});
  let batches = 0;
  const result = await prepare({ ...options, onProgress: () => {
    say("batch");
    // Gives the test time to interfere before the next batch.
    if (batches++ === 0) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 2000);
  } }).catch((e) => e);
  say(JSON.stringify(result instanceof Error
    ? { name: result.name, code: result.code, message: result.message }
    : { resumed: result.resumedDocuments }));`;

async function workplace(workers = 2) {
  const compiled = await compileLibrary();
  const folder = await temporaryFolder();
  const lines = Object.values(documents(9000, 90)).map((text) => JSON.stringify({ text }));
  await writeFiles(folder, { "a.jsonl": lines.join("\n") });
  const options = (out: string): PrepareOptions => ({
    inputs: [join(folder, "a.jsonl")],
    out: join(folder, out),
    tokenizer: quickstart,
    shardTokens: 60_000,
    workers,
  });
  /**
   * Runs the program in a group of its own, and calls `onBatch` at its first batch with its process
   * id.
   */
  const run = async (
    onBatch: (pid: number) => Promise<void> | void = () => {},
    harm = "",
  ): Promise<Outcome> => {
    const prepareUrl = pathToFileURL(join(compiled, "prepare/prepare.js")).href;
    const command = [
      process.execPath,
      "--input-type=module",
      "-e",
      program.replace("HARM", harm),
      prepareUrl,
    ];
    const child = spawn(
      "sh",
      ["-c", 'ulimit -n 400; exec "$@"', "sh", ...command, JSON.stringify(options("out"))],
      { stdio: ["ignore", "pipe", "inherit"], detached: true },
    );
    // A program that waits for ever is a failure. It is killed with its processes.
    onTestFinished(() => {
      try {
        process.kill(-(child.pid as number), "SIGKILL");
      } catch {
        // all of them have ended
      }
    });
    let text = "";
    let seen = false;
    const actions: (Promise<void> | void)[] = [];
    child.stdout.on("data", (data) => {
      text += data;
      if (seen || !text.includes("batch")) return;
      seen = true;
      actions.push(onBatch(child.pid as number));
    });
    await once(child, "close");
    await Promise.all(actions);
    return JSON.parse(text.trim().split("\n").at(-1) as string) as Outcome;
  };
  return { folder, options, run };
}

/** The processes that a process has started. */
async function childrenOf(pid: number): Promise<number[]> {
  const found: number[] = [];
  for (const name of await readdir("/proc")) {
    const status =
      /^\d+$/.test(name) && (await readFile(`/proc/${name}/stat`, "utf8").catch(() => ""));
    // "pid (name) state parent …"
    if (status && Number(status.slice(status.lastIndexOf(")") + 2).split(" ")[1]) === pid) {
      found.push(Number(name));
    }
  }
  return found;
}

describe.runIf(process.platform === "linux")("D6 the processes that encode", () => {
  it("outlive the terminal as their parent does", async () => {
    const { folder, options, run } = await workplace();
    await prepare({ ...options("clean"), workers: 0 });
    // A closed terminal sends SIGHUP to the group.
    const outcome = await run((pid) => void process.kill(-pid, "SIGHUP"));
    expect(outcome).toEqual({ resumed: 0 });
    expect(await contentsOf(join(folder, "out"))).toEqual(await contentsOf(join(folder, "clean")));
  }, 120_000);

  it("may die: an error of the data's kind, and the next call goes on, even if it must bring the tokenizer anew", async () => {
    const { folder, options, run } = await workplace(1);
    await prepare({ ...options("clean"), workers: 0 });
    // One process has at most three of the five batches when the first one is written.
    const outcome = await run(async (pid) => {
      for (const child of await childrenOf(pid)) process.kill(child, "SIGKILL");
    });
    expect(outcome).toMatchObject({ name: "DataError", code: "ERR_DATA" });
    expect(outcome.message).toMatch(
      /a tokenizer process ended with SIGKILL|cannot use a tokenizer/,
    );
    expect(outcome.message).toMatch(/what is done so far stays in .*out\.tmp/);
    await truncate(join(folder, "out.tmp/tokenizer.json"));
    const { resumed } = await run();
    expect(resumed).toBeGreaterThan(500);
    expect(await contentsOf(join(folder, "out"))).toEqual(await contentsOf(join(folder, "clean")));
  }, 120_000);

  it.each([0, 2])(
    "a tokenizer that aborts on a text: an error that names the record (%d workers asked for)",
    async (workers) => {
      const compiled = await compileLibrary();
      const folder = await temporaryFolder();
      const json = JSON.parse(await readFile(join(quickstart, "tokenizer.json"), "utf8"));
      json.normalizer = { type: "Replace", pattern: { Regex: "(a+)+$" }, content: "b" };
      const lines = ["good", `${"a".repeat(80)}c`, "good too"].map((text) =>
        JSON.stringify({ text }),
      );
      await writeFiles(folder, {
        "tokenizer/tokenizer.json": JSON.stringify(json),
        "tokenizer/tokenizer_config.json": await readFile(
          join(quickstart, "tokenizer_config.json"),
          "utf8",
        ),
        "a.jsonl": lines.join("\n"),
        "b.jsonl": lines.filter((line) => line.includes("good")).join("\n"),
      });
      // Without a number, a small input has no processes unless its tokenizer needs one.
      const options = (input: string) => ({
        inputs: [join(folder, input)],
        out: join(folder, input.replace(".jsonl", "")),
        tokenizer: join(folder, "tokenizer"),
        ...(workers > 0 && { workers }),
      });
      const script = `
        const { prepare } = await import(process.argv[1]);
        const [bad, good] = JSON.parse(process.argv[2]);
        const error = await prepare(bad).catch((error) => error);
        const { dataset } = await prepare(good);
        console.log(JSON.stringify({ code: error.code, message: error.message, tokens: dataset.splits }));`;
      const { stdout, stderr } = await promisify(execFile)(process.execPath, [
        ...["--input-type=module", "-e", script],
        pathToFileURL(join(compiled, "prepare/prepare.js")).href,
        JSON.stringify([options("a.jsonl"), options("b.jsonl")]),
      ]);
      const { code, message, tokens } = JSON.parse(stdout);
      expect(code).toBe("ERR_DATA");
      expect(message).toMatch(
        /a\.jsonl, record 1: the tokenizer cannot encode this text: a regular expression of tokenizer\.json backtracks too long/,
      );
      expect(tokens).toBeTruthy();
      expect(stderr).not.toContain("panicked");
      expect((await readdir(folder)).sort()).toEqual(["a.jsonl", "b", "b.jsonl", "tokenizer"]);
    },
    120_000,
  );

  it.each<[string, string, RegExp]>([
    [
      "there are no files left to open",
      `const { closeSync, openSync } = await import("node:fs");
       const taken = [];
       try { for (;;) taken.push(openSync("/dev/null")); } catch {}
       for (const file of taken.splice(0, 12)) closeSync(file);`,
      /cannot use a tokenizer process: .*EMFILE/,
    ],
    [
      "the program is not there",
      'process.execPath = "/nonexistent/node";',
      /cannot use a tokenizer process: .*ENOENT/,
    ],
    [
      "starting the second one throws",
      `const node = process.execPath;
       let asked = 0;
       Object.defineProperty(process, "execPath", { get: () => asked++ === 0 ? node : "a\\0b" });`,
      /cannot use a tokenizer process: .*null bytes/,
    ],
  ])(
    "that do not start because %s end it at once",
    async (_, harm, message) => {
      const { run } = await workplace(16);
      const outcome = await run(() => {}, harm);
      expect(outcome.name).toBe("DataError");
      expect(outcome.message).toMatch(message);
    },
    60_000,
  );
});
