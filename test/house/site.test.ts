// The site: typedoc makes it of the pages and of the exports without a warning, and no link of it is
// dead. docs.test.ts checks the pages' own links quickly; this test those of every generated page.
import { execFileSync } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, relative, resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { afterAll, beforeAll, expect, test } from "vitest";
import { root } from "../cli/build.js";
import { launchChromium, screenshots } from "../support/chromium.js";

const site = mkdtempSync(join(tmpdir(), "llamaforge-site-"));
beforeAll(() => {
  // Warnings are errors by typedoc.json: an undocumented export, a type that is not exported.
  execFileSync(process.execPath, ["node_modules/typedoc/bin/typedoc", "--out", site], {
    cwd: root,
    stdio: ["ignore", "pipe", "pipe"],
  });
}, 300_000);
afterAll(() => rmSync(site, { recursive: true, force: true }));

const pages = () =>
  readdirSync(site, { recursive: true, encoding: "utf8" }).filter((name) => name.endsWith(".html"));

test("every link of every page leads to a file and to an anchor of it", () => {
  const anchors = new Map<string, Set<string>>();
  const anchorsOf = (file: string): Set<string> => {
    const known = anchors.get(file);
    if (known) return known;
    const text = readFileSync(file, "utf8");
    const found = new Set([...text.matchAll(/\bid="([^"]+)"/g)].map(([, id]) => id as string));
    anchors.set(file, found);
    return found;
  };
  const dead: string[] = [];
  let count = 0;
  for (const page of pages()) {
    const file = join(site, page);
    for (const [, link = ""] of readFileSync(file, "utf8").matchAll(/\b(?:href|src)="([^"]+)"/g)) {
      if (/^(https?|mailto|data):/.test(link)) continue;
      count++;
      const [path = "", anchor] = link.replaceAll("&amp;", "&").split("#");
      const target = path === "" ? file : resolve(dirname(file), decodeURIComponent(path));
      if (!existsSync(target)) dead.push(`${page}: ${link}`);
      else if (anchor && statSync(target).isFile() && target.endsWith(".html")) {
        if (!anchorsOf(target).has(decodeURIComponent(anchor))) dead.push(`${page}: ${link}`);
      }
    }
  }
  expect(count).toBeGreaterThan(10_000);
  expect([...new Set(dead)].slice(0, 40)).toEqual([]);
}, 120_000);

test("pages open in a browser without an error", async () => {
  const browser = await launchChromium();
  try {
    const shown = ["index.html", "documents/docs_your-own-data.html", "classes/index.Trainer.html"];
    for (const name of shown) {
      const file = pages().find((page) => page.toLowerCase().endsWith(name.toLowerCase())) ?? name;
      const page = await browser.newPage({ viewport: { width: 1200, height: 900 } });
      const complaints: string[] = [];
      page.on("pageerror", (error) => complaints.push(String(error)));
      await page.goto(pathToFileURL(join(site, file)).href);
      expect(await page.textContent("h1"), relative(site, file)).not.toBe("");
      const picture = `site-${name.replace(/.*\//, "").replace(".html", "")}.png`;
      await page.screenshot({ path: join(screenshots, picture) });
      expect(complaints).toEqual([]);
      await page.close();
    }
  } finally {
    await browser.close();
  }
}, 120_000);
