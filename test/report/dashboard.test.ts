// The live page of a run, in a browser and by hand.
import { mkdtempSync, rmSync } from "node:fs";
import { request } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Browser, Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { Dashboard } from "../../lib/report/dashboard.js";
import { type RunInfo, readRunInfo } from "../../lib/train/metrics.js";
import { launchChromium, screenshots } from "../support/chromium.js";
import { fakeSteps, hostileText, writeFakeRun } from "./fake-run.js";

const steps = fakeSteps(400);
let folder: string;
let info: RunInfo;
let browser: Browser;
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "dashboard-"));
  await writeFakeRun(folder, steps.slice(0, 1));
  info = await readRunInfo(folder);
  browser = await launchChromium();
}, 60_000);
afterAll(async () => {
  await browser?.close();
  rmSync(folder, { recursive: true, force: true });
});

interface Asked {
  save: number;
  stop: number;
}

async function open(from = 100): Promise<{ dashboard: Dashboard; asked: Asked }> {
  const asked = { save: 0, stop: 0 };
  const actions = {
    save: () => {
      asked.save++;
      if (asked.save > 1) throw new Error("the disk is full");
      return "saving after this step";
    },
    stop: () => {
      asked.stop++;
      return "finishing the step and saving";
    },
  };
  return { dashboard: await Dashboard.open(info, steps.slice(0, from), actions), asked };
}

async function openPage(
  address: string,
  { dark = false, width = 1280 } = {},
): Promise<{ page: Page; complaints: string[] }> {
  const page = await browser.newPage({
    viewport: { width, height: 900 },
    colorScheme: dark ? "dark" : "light",
  });
  const complaints: string[] = [];
  page.on("pageerror", (error) => complaints.push(String(error)));
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) complaints.push(message.text());
  });
  page.on("dialog", (dialog) => dialog.accept());
  await page.goto(address);
  return { page, complaints };
}

/** Waits until the page's status begins with a text. */
const said = (page: Page, text: string) =>
  vi.waitFor(
    async () => expect(await page.textContent("#live-status")).toMatch(new RegExp(`^${text}`)),
    30_000,
  );

describe("the page of a running run", () => {
  it("shows further steps by itself, saves and stops behind its token, and says how it ended", async () => {
    const { dashboard, asked } = await open();
    const { page, complaints } = await openPage(dashboard.url);
    await page.waitForSelector("#charts figure:nth-child(5) canvas");
    const before = await page.locator('[data-chart="loss"] canvas').screenshot();
    for (const step of steps.slice(100, 350)) dashboard.step(step);
    await said(page, "step 350");
    expect(await page.locator("header .cards").textContent()).toContain("step 350 of 950");
    expect(await page.locator("#tables").textContent()).toContain("the nation at step 250");
    const after = await page.locator('[data-chart="loss"] canvas').screenshot();
    expect(after.equals(before)).toBe(false);
    // The axis has grown: at the chart's right edge is the newest step.
    const plot = page.locator('[data-chart="loss"] .u-over');
    const { width = 0, height = 0 } = (await plot.boundingBox()) ?? {};
    await plot.hover({ position: { x: width - 1, y: height / 2 } });
    expect(await page.locator('[data-chart="loss"] .u-legend').textContent()).toContain("350");
    expect(await page.evaluate(`"broken" in window`)).toBe(false);
    expect(await page.locator("#tables").textContent()).toContain(hostileText.slice(0, 9));
    await page.screenshot({ path: `${screenshots}/dashboard-light.png`, fullPage: true });

    await page.click("#live-save");
    await said(page, "saving after this step");
    await page.click("#live-stop");
    await said(page, "finishing the step and saving");
    expect(asked).toEqual({ save: 1, stop: 1 });
    await dashboard.close("stopped and saved after step 351");
    await said(page, "stopped and saved");
    expect(await page.locator("#live-stop").isDisabled()).toBe(true);
    expect(complaints).toEqual([]);
    await page.close();
  });

  it("waits for the first step, and offers no buttons without the token", async () => {
    const { dashboard } = await open(0);
    const address = dashboard.url.replace(/#.*/, "");
    const { page, complaints } = await openPage(address, { dark: true, width: 420 });
    expect(await page.textContent("p")).toContain("has not finished its first step");
    for (const step of steps.slice(0, 260)) dashboard.step(step);
    await page.waitForSelector("#live-status");
    await said(page, "step 260");
    expect(await page.locator("#live-stop").isDisabled()).toBe(true);
    const wider = "document.documentElement.scrollWidth > innerWidth";
    expect(await page.evaluate(wider)).toBe(false);
    await page.screenshot({ path: `${screenshots}/dashboard-phone-dark.png` });
    expect(complaints).toEqual([]);
    await page.close();
    await dashboard.close("done");
  });
});

describe("the server of the page", () => {
  interface Answer {
    status: number | undefined;
    text: string;
  }
  const ask = (address: string, method = "GET", headers: Record<string, string> = {}) =>
    new Promise<Answer>((resolve, reject) => {
      const sent = request(address, { method, headers }, (response) => {
        let text = "";
        response.on("data", (chunk) => {
          text += chunk;
        });
        response.on("end", () => resolve({ status: response.statusCode, text }));
      });
      sent.on("error", reject);
      sent.end();
    });

  it("refuses other names of the host, other methods, and buttons without the token", async () => {
    const { dashboard, asked } = await open();
    const [base = "", token = ""] = dashboard.url.split("#token=");
    const bearer = { authorization: `Bearer ${token}` };
    expect((await ask(base, "GET", { host: "evil.example" })).status).toBe(403);
    expect((await ask(base, "POST")).status).toBe(405);
    expect((await ask(`${base}nothing`)).status).toBe(404);
    expect((await ask(`${base}stop`, "POST")).status).toBe(401);
    expect((await ask(`${base}stop`, "POST", { authorization: "Bearer x" })).status).toBe(401);
    expect((await ask(`${base}stop`, "GET", bearer)).status).toBe(405);
    expect(asked).toEqual({ save: 0, stop: 0 });
    expect((await ask(`${base}save`, "POST", bearer)).status).toBe(202);
    const refused = await ask(`${base}save`, "POST", bearer);
    expect(refused).toEqual({ status: 409, text: "the disk is full" });
    await dashboard.close("done");
  });

  it("gives the last step to Prometheus", async () => {
    const { dashboard } = await open(100);
    const [base = ""] = dashboard.url.split("#");
    const { text } = await ask(`${base}metrics`);
    expect(text).toContain("# TYPE llamaforge_train_loss gauge");
    expect(text).toContain('llamaforge_train_step{run="quickstart"} 100');
    expect(text).toContain('llamaforge_train_tokens_total{run="quickstart"} 204800');
    dashboard.step({ ...(steps[100] as (typeof steps)[0]), loss: Number.NaN });
    expect((await ask(`${base}metrics`)).text).toContain('train_loss{run="quickstart"} NaN');
    await dashboard.close("done");
  });

  it("a port in use is an error of its own", async () => {
    const { dashboard } = await open();
    const port = Number(new URL(dashboard.url).port);
    const actions = { save: () => "", stop: () => "" };
    await expect(Dashboard.open(info, [], actions, port)).rejects.toThrow(
      `the dashboard cannot listen at port ${port}: listen EADDRINUSE`,
    );
    await dashboard.close("done");
  });
});
