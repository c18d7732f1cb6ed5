import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import type { Browser, Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { UsageError } from "../../lib/core/errors.js";
import { presets } from "../../lib/model/presets.js";
import { type chartData, readRun } from "../../lib/report/events.js";
import { embedJson, escapeHtml, renderReport, writeReport } from "../../lib/report/html.js";
import { launchChromium, screenshots } from "../support/chromium.js";
import { fakeSteps, hostileText, writeFakeRun } from "./fake-run.js";

let folder: string;
let file: string;
let browser: Browser;
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "report-"));
  await writeFakeRun(folder, fakeSteps(950));
  file = await writeReport(folder);
  browser = await launchChromium();
}, 60_000);
afterAll(async () => {
  await browser?.close();
  rmSync(folder, { recursive: true, force: true });
});

interface OpenPage {
  page: Page;
  /** Console errors, exceptions and requests beyond the file itself. */
  complaints: string[];
}

async function openReport(
  options: { dark?: boolean; width?: number; report?: string } = {},
): Promise<OpenPage> {
  const { dark = false, width = 1280, report = file } = options;
  const page = await browser.newPage({
    viewport: { width, height: 900 },
    colorScheme: dark ? "dark" : "light",
  });
  const complaints: string[] = [];
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) complaints.push(message.text());
  });
  page.on("pageerror", (error) => complaints.push(String(error)));
  page.on("request", (request) => {
    const url = request.url();
    if (!url.startsWith("data:") && url !== pathToFileURL(report).href) complaints.push(url);
  });
  await page.goto(pathToFileURL(report).href);
  await drawn(page);
  return { page, complaints };
}

/** uPlot draws in a microtask, so everything is on the screen after two frames. */
async function drawn(page: Page): Promise<void> {
  await page.evaluate(
    "new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)))",
  );
}

/** Per chart: the width of the canvas, and the number of pixels in the color of the series. */
async function inspectCharts(page: Page) {
  const script = `[...document.querySelectorAll("#charts figure")].map((figure) => {
    const canvas = figure.querySelector("canvas");
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    const wanted = getComputedStyle(document.documentElement).getPropertyValue("--series-1").trim();
    const [r, g, b] = [1, 3, 5].map((at) => parseInt(wanted.slice(at, at + 2), 16));
    let series = 0;
    for (let i = 0; i < data.length; i += 4) {
      if (data[i + 3] === 255 && data[i] === r && data[i + 1] === g && data[i + 2] === b) series++;
    }
    return { chart: figure.dataset.chart, width: canvas.clientWidth, series };
  })`;
  return (await page.evaluate(script)) as { chart: string; width: number; series: number }[];
}

const names = ["loss", "lr", "gradNorm", "speed", "memory"];

describe("the speed", () => {
  const speedOf = async (change: object, precision = "bf16") => {
    const run = await readRun(folder);
    const model = presets["tinyllama-1.1b"];
    const config = { ...run.info.config, model, precision } as typeof run.info.config;
    const html = await renderReport({ ...run, info: { ...run.info, ...change, config } });
    return /tokens\/s, [^<]*/.exec(html)?.[0];
  };

  it("is a share of the peaks of all devices, where they are known", async () => {
    const deviceName = "NVIDIA H100 80GB HBM3";
    const one = await speedOf({ deviceName });
    const share = Number(/([\d.]+)% of H100 SXM/.exec(one ?? "")?.[1]);
    expect(share).toBeGreaterThan(0);
    const four = await speedOf({ deviceName, worldSize: 4 });
    const shared = Number(/([\d.]+)% of 4 times H100 SXM/.exec(four ?? "")?.[1]);
    expect(Math.abs(shared - share / 4)).toBeLessThan(0.06);
  });

  it("is none of a peak for other numbers, or of another device", async () => {
    for (const [deviceName, precision] of [
      ["NVIDIA H100 80GB HBM3", "fp32"],
      ["NVIDIA RTX A1000", "bf16"],
      ["AMD EPYC 9554", "bf16"],
    ] as const) {
      expect(await speedOf({ deviceName }, precision), deviceName).toMatch(/counted causally$/);
    }
  });
});

describe("what is in the way", () => {
  it("of the file is named, and no half of it stays", async () => {
    const taken = join(folder, "taken");
    mkdirSync(taken);
    await expect(writeReport(folder, taken)).rejects.toThrow(UsageError);
    expect(existsSync(`${taken}.tmp`)).toBe(false);
    const deep = join(folder, "a/b/report.html");
    expect(await writeReport(folder, deep)).toBe(deep);
  });

  it("of reading the run too", async () => {
    const broken = join(folder, "broken");
    mkdirSync(broken);
    writeFileSync(join(broken, "run.json"), "{}");
    await expect(writeReport(broken)).rejects.toThrow(/run\.json: it is no record of a run/);
  });
});

describe("report.html in a browser", () => {
  it.each([false, true])(
    "draws every chart without a complaint (dark: %s)",
    async (dark) => {
      const { page, complaints } = await openReport({ dark });
      const charts = await inspectCharts(page);
      expect(charts.map(({ chart }) => chart)).toEqual(names);
      for (const { chart, series } of charts) expect(series, chart).toBeGreaterThan(200);
      expect(complaints).toEqual([]);
      const picture = `${screenshots}/report-${dark ? "dark" : "light"}.png`;
      await page.screenshot({ path: picture, fullPage: true });
      expect(statSync(picture).size).toBeGreaterThan(50_000);
      await page.close();
    },
    30_000,
  );

  it("switches the x axis between steps and tokens", async () => {
    const { page, complaints } = await openReport();
    const legend = () => page.locator("#charts figure").first().locator(".u-legend").innerText();
    const loss = page.locator('figure[data-chart="loss"] canvas');
    const before = await loss.screenshot();
    expect(await legend()).toMatch(/^step\W/);
    await page.locator("#controls fieldset span", { hasText: "tokens" }).click();
    await drawn(page);
    expect(await legend()).toMatch(/^tokens\W/);
    expect((await loss.screenshot()).equals(before)).toBe(false);
    await page.locator("#controls fieldset span", { hasText: "steps" }).click();
    await drawn(page);
    expect((await loss.screenshot()).equals(before)).toBe(true);
    expect(complaints).toEqual([]);
    await page.close();
  }, 30_000);

  it("draws the loss on a log scale and with other smoothing", async () => {
    const { page, complaints } = await openReport();
    const loss = page.locator('figure[data-chart="loss"] canvas');
    const linear = await loss.screenshot();
    await page.locator("#log-loss").check();
    await drawn(page);
    const logarithmic = await loss.screenshot();
    expect(logarithmic.equals(linear)).toBe(false);
    const charts = await inspectCharts(page);
    for (const { chart, series } of charts) expect(series, chart).toBeGreaterThan(200);
    await page.locator("#smoothing").fill("0");
    await drawn(page);
    expect((await loss.screenshot()).equals(logarithmic)).toBe(false);
    expect(complaints).toEqual([]);
    await page.close();
  }, 30_000);

  it("marks skipped steps", async () => {
    const { page } = await openReport();
    expect(await page.locator('figure[data-chart="loss"] figcaption').innerText()).toContain(
      "2 skipped steps",
    );
    const red = await page.evaluate(`(() => {
      const canvas = document.querySelector('figure[data-chart="loss"] canvas');
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      const columns = new Set();
      for (let i = 0; i < data.length; i += 4) {
        if (data[i] > 200 && data[i + 1] < 130 && data[i + 2] < 150) columns.add((i / 4) % canvas.width);
      }
      return columns.size;
    })()`);
    expect(red).toBeGreaterThanOrEqual(2);
    await page.close();
  }, 30_000);

  it("shows scores on tasks, with the published ones as lines", async () => {
    const scored = join(folder, "scored");
    const scores = [
      { task: "arc_easy", metric: "acc_norm", value: 0.301, error: 0.009 },
      { task: "text:<b>.txt", metric: "bits_per_byte", value: 1.5, error: null },
    ];
    const steps = fakeSteps(300).map((step) => (step.step % 100 ? step : { ...step, scores }));
    await writeFakeRun(scored, steps);
    const { page, complaints } = await openReport({ report: await writeReport(scored) });
    const title = (chart: string) =>
      page.locator(`figure[data-chart="task-${chart}"] figcaption`).innerText();
    expect(await title("arc_easy")).toMatch(/arc_easy\s*acc_norm, percent · dotted: published/);
    expect(await title("text:<b>.txt")).toMatch(/text:<b>\.txt\s*bits per byte/);
    const text = (await page.locator("#run-data").textContent()) as string;
    const charts = (JSON.parse(text) as ReturnType<typeof chartData>).tasks.map(
      ({ values, published }) => [
        values.filter((value) => value !== null),
        published.map(({ value }) => value),
      ],
    );
    expect(charts[0]).toEqual([
      [30.1, 30.1, 30.1],
      [48.99, 54, 44.91, 55.25],
    ]);
    expect(charts[1]).toEqual([[1.5, 1.5, 1.5], []]);
    await page.locator("summary", { hasText: "Scores on tasks" }).click();
    expect(
      await page.locator("table.figures tr", { hasText: "arc_easy" }).first().innerText(),
    ).toBe("300\tarc_easy\tacc_norm\t30.10\t0.90");
    await page.locator('figure[data-chart="task-arc_easy"]').screenshot({
      path: join(screenshots, "report-scores.png"),
    });
    expect(complaints).toEqual([]);
    await page.close();
  });

  it("fits a narrow window, and grows with it", async () => {
    const { page } = await openReport({ width: 480 });
    const overflow = () =>
      page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth");
    expect(await overflow()).toBe(0);
    const narrow = (await inspectCharts(page))[0]!.width;
    expect(narrow).toBeLessThan(480);
    await page.setViewportSize({ width: 1100, height: 800 });
    await drawn(page);
    await drawn(page);
    expect((await inspectCharts(page))[0]!.width).toBeGreaterThan(narrow + 400);
    expect(await overflow()).toBe(0);
    await page.close();
  }, 30_000);

  it("shows text from the model as text, whatever it is", async () => {
    const { page } = await openReport();
    expect(await page.evaluate("window.broken")).toBeUndefined();
    expect(await page.locator("blockquote").nth(1).innerText()).toContain("</script><script>");
    expect(await page.locator("img").count()).toBe(0);
    const groups = await page.locator(".samples summary").allInnerTexts();
    expect(groups).toEqual(["step 750", "step 500", "step 250"]);
    await page.close();
  }, 30_000);

  it("says what the run is and came to", async () => {
    const { page } = await openReport();
    const header = await page.locator("header").innerText();
    for (const part of ["quickstart", "6.52M parameters", "AMD EPYC", "1.95M", "step 950 of 950"]) {
      expect(header).toContain(part);
    }
    expect(await page.locator(".config").innerText()).toMatch(/peakLr\s+0\.002/);
    await page.close();
  }, 30_000);
});

describe("the file", () => {
  it("is self-contained and keeps uPlot's licence", () => {
    const html = readFileSync(file, "utf8");
    expect(html).toContain("Copyright (c) 2022 Leon Sorokin");
    expect(html).toContain(
      "The above copyright notice and this permission notice shall be included",
    );
    expect(html).not.toMatch(/<(script|link|img|iframe)[^>]+(src|href)="(?!data:)/i);
    expect(html.length).toBeLessThan(1_000_000);
  });

  it("goes where it is told, as a whole", async () => {
    const other = join(folder, "other.html");
    expect(await writeReport(folder, other)).toBe(other);
    expect(readFileSync(other, "utf8")).toContain("</html>");
    expect(existsSync(`${other}.tmp`)).toBe(false);
  });

  it("does not grow with the number of steps", async () => {
    const long = join(folder, "long");
    await writeFakeRun(
      long,
      fakeSteps(60_000).map(({ samples: _, ...step }) => step),
    );
    expect(statSync(await writeReport(long)).size).toBeLessThan(1_000_000);
  });
});

describe("escaping", () => {
  it("leaves no markup", () => {
    expect(escapeHtml(hostileText)).not.toMatch(/[<>"']/);
    expect(escapeHtml("a\0b&")).toBe("a\u{2400}b&amp;");
    const json = embedJson({ text: hostileText });
    expect(json).not.toContain("<");
    expect(JSON.parse(json)).toEqual({ text: hostileText });
  });
});
