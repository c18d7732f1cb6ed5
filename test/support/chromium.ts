import { existsSync, mkdirSync } from "node:fs";
import { type Browser, chromium } from "playwright-core";

const executablePath = process.env.CHROMIUM ?? "/usr/bin/chromium";

/** Folder of the pictures that tests of pages take, to be looked at. */
export const screenshots = "build/screenshots";

/** A headless browser for tests of pages. @throws Error that says how to install Chromium */
export async function launchChromium(): Promise<Browser> {
  if (!existsSync(executablePath)) {
    throw new Error(
      `tests of pages need Chromium, and there is none at ${executablePath}. ` +
        "Install it with `apt-get install -y chromium`, or name another one in CHROMIUM.",
    );
  }
  mkdirSync(screenshots, { recursive: true });
  return await chromium.launch({
    executablePath,
    args: [
      "--headless",
      "--no-sandbox",
      "--disable-gpu",
      "--disable-quic",
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
    ],
  });
}
