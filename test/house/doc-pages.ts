/** Code blocks of the pages for users. */
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { root } from "../cli/build.js";

export interface CodeBlock {
  language: string;
  code: string;
}

/** The pages that a user reads, from the repository's root. Logs describe the past. */
export const userPages = [
  "README.md",
  ...readdirSync(join(root, "docs"))
    .filter((name) => name.endsWith(".md") && name !== "LOG.md")
    .map((name) => `docs/${name}`),
];

export function codeBlocks(page: string): CodeBlock[] {
  const text = readFileSync(join(root, page), "utf8");
  return [...text.matchAll(/^```(\w*)\n([\s\S]*?)^```/gm)].map(([, language = "", code = ""]) => ({
    language,
    code,
  }));
}
