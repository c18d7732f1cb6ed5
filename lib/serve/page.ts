import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";

/** The chat page: one file without external resources. */
export interface ChatPage {
  html: string;
  headers: Readonly<Record<string, string>>;
}

/** Reads the page, with the headers that let a browser run its own script and nothing else. */
export async function readPage(): Promise<ChatPage> {
  const html = await readFile(new URL("../../assets/serve/chat.html", import.meta.url), "utf8");
  const hashes = (tag: string) =>
    [...html.matchAll(new RegExp(`<${tag}>([\\s\\S]*?)</${tag}>`, "g"))]
      .map(([, text]) =>
        createHash("sha256")
          .update(text as string)
          .digest("base64"),
      )
      .map((hash) => `'sha256-${hash}'`)
      .join(" ");
  const policy = [
    "default-src 'none'",
    `script-src ${hashes("script")}`,
    `style-src ${hashes("style")}`,
    "connect-src 'self'",
    "img-src data:",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
  ].join("; ");
  const headers = {
    "content-security-policy": policy,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
  };
  return { html, headers };
}
