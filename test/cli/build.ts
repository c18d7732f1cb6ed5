import { mkdirSync, readdirSync, readFileSync, renameSync, statSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import type typescript from "typescript";

export const root = fileURLToPath(new URL("../..", import.meta.url));

/**
 * Brings dist/ up to date with lib/, so that child processes run the current sources.
 * `npm run check` checks the types. The bundle for GPU hosts has a finished dist/ and no compiler.
 */
export function buildLibrary(): void {
  if (process.env.LLAMAFORGE_BUNDLE) return;
  const ts: typeof typescript = createRequire(import.meta.url)("typescript");
  const sources = readdirSync(join(root, "lib"), { recursive: true, encoding: "utf8" });
  for (const source of sources.filter((name) => name.endsWith(".ts"))) {
    const from = join(root, "lib", source);
    const to = join(root, "dist", source.replace(/\.ts$/, ".js"));
    const built = statSync(to, { throwIfNoEntry: false });
    if (built !== undefined && built.mtimeMs > statSync(from).mtimeMs) continue;
    const { outputText } = ts.transpileModule(readFileSync(from, "utf8"), {
      fileName: from,
      compilerOptions: {
        target: ts.ScriptTarget.ES2022,
        module: ts.ModuleKind.ESNext,
        verbatimModuleSyntax: true,
      },
    });
    mkdirSync(dirname(to), { recursive: true });
    writeFileSync(`${to}.${process.pid}`, outputText);
    renameSync(`${to}.${process.pid}`, to);
  }
}

/** The specifier by which a script in a child process imports a module, e.g. `train/metrics.js`. */
export function importOf(module: string): string {
  return JSON.stringify(pathToFileURL(join(root, "dist", module)).href);
}
