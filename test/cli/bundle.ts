import { fileURLToPath } from "node:url";
import { build } from "rolldown";

/** Turns a module of the sources into one JavaScript file that a child process can run. */
export async function bundle(module: string, file: string): Promise<void> {
  await build({
    input: fileURLToPath(new URL(`../../${module}`, import.meta.url)),
    platform: "node",
    external: (id) => !id.startsWith(".") && !id.startsWith("/"),
    logLevel: "silent",
    output: { file, codeSplitting: false },
  });
}
