import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import type { Browser } from "playwright-core";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { writeComparison } from "../../lib/report/compare.js";
import { launchChromium, screenshots } from "../support/chromium.js";
import { fakeSteps, hostileText, writeFakeRun } from "./fake-run.js";

let folder: string;
let browser: Browser;
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "compare-"));
  await writeFakeRun(join(folder, "first"), fakeSteps(950));
  const slower = fakeSteps(400).map((step) => ({ ...step, loss: step.loss + 0.4 }));
  await writeFakeRun(join(folder, "second"), slower, (config) => ({
    ...config,
    name: hostileText,
    optimizer: { ...config.optimizer, peakLr: 1e-3 },
  }));
  browser = await launchChromium();
}, 60_000);
afterAll(async () => {
  await browser?.close();
  rmSync(folder, { recursive: true, force: true });
});

describe("a comparison of runs", () => {
  it("draws a line for each run, and lists results and the options that differ", async () => {
    const runs = ["first", "second"].map((name) => join(folder, name));
    const file = await writeComparison(runs, join(folder, "new/comparison.html"));
    const page = await browser.newPage({ viewport: { width: 1100, height: 900 } });
    const complaints: string[] = [];
    page.on("pageerror", (error) => complaints.push(String(error)));
    page.on("console", (message) => complaints.push(message.text()));
    await page.goto(pathToFileURL(file).href);
    await page.waitForSelector("#charts figure:nth-child(4) canvas");
    const legend = await page.locator('[data-chart="loss"] .u-legend').textContent();
    expect(legend).toContain("first");
    expect(legend).toContain("second");
    const text = await page.textContent("main");
    expect(text).toContain("optimizer.peakLr");
    expect(text).not.toContain("optimizer.beta1");
    expect(complaints).toEqual([]);
    await page.screenshot({ path: `${screenshots}/comparison.png`, fullPage: true });
    await page.check('input[value="tokens"]', { force: true });
    expect(complaints).toEqual([]);
    await page.close();
    expect(readFileSync(file, "utf8")).not.toContain("<img src=x");
  });

  it("refuses one run, nine, and a folder that is none", async () => {
    const run = join(folder, "first");
    await expect(writeComparison([run], "x.html")).rejects.toThrow("expected two to 8 runs");
    await expect(writeComparison(Array(9).fill(run), "x.html")).rejects.toThrow("got 9");
    await expect(writeComparison([run, "nowhere"], "x.html")).rejects.toThrow("is not a folder");
  });
});
