import type { Command } from "commander";
import { exitCodes } from "../core/errors.js";
import { exitAtOnce } from "../core/exit.js";
import { modelFolder } from "./model-folder.js";
import { catchStopSignals } from "./signals.js";
import { print, printError } from "./terminal.js";

interface PushFlags {
  public?: true;
  message?: string;
}

export function addPush(program: Command): void {
  program
    .command("push")
    .description("uploads a model to the Hugging Face Hub, without what only training needs")
    .argument("<folder>", "a Hugging Face model, a checkpoint, or a run, whose newest is taken")
    .argument("<model>", "hf:OWNER/NAME, or hf:OWNER/NAME@BRANCH; HF_TOKEN must hold a token")
    .option("--public", "let everybody read a repository that does not exist yet")
    .option("--message <text>", "first line of the commit")
    .action(async (folder: string, model: string, flags: PushFlags) => {
      const { pushModel } = await import("../hub/push-model.js");
      const path = await modelFolder(folder);
      const abort = new AbortController();
      const signals = catchStopSignals({ onRequest: () => abort.abort(), exit: exitAtOnce });
      let shown = "";
      try {
        const { url, sent, removed } = await pushModel(path, model, {
          ...(flags.public && { public: true }),
          ...(flags.message && { message: flags.message }),
          signal: abort.signal,
          onProgress: ({ file, state }) => {
            const line = `${state} ${file}`;
            if (line !== shown && process.stderr.isTTY) printError(`${line}\n`);
            shown = line;
          },
        });
        const files = `${sent.length} ${sent.length === 1 ? "file" : "files"} sent`;
        const gone = removed.length > 0 ? `, ${removed.join(", ")} removed` : "";
        print(`${url}  ${sent.length === 0 ? "has all files already" : files}${gone}\n`);
      } catch (error) {
        if (!abort.signal.aborted) throw error;
        printError(`stopped by ${signals.requested}; the same command goes on\n`);
        process.exitCode = exitCodes.stopped;
      } finally {
        signals.dispose();
      }
    });
}
