import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";

/** Scripts and styles that a page of charts holds, so that it needs no other file. */
export interface PageAssets {
  chartScript: string;
  chartStyle: string;
  chartLicence: string;
  pageScript: string;
  pageStyle: string;
}

/** @param script name of the page's own script in assets/report */
export async function pageAssets(script: string): Promise<PageAssets> {
  const asset = (name: string) =>
    readFile(new URL(`../../assets/report/${name}`, import.meta.url), "utf8");
  const uplot = (name: string) =>
    readFile(createRequire(import.meta.url).resolve(`uplot/${name}`), "utf8");
  const [chartScript, chartStyle, chartLicence, pageScript, pageStyle] = await Promise.all([
    uplot("dist/uPlot.iife.min.js"),
    uplot("dist/uPlot.min.css"),
    uplot("LICENSE"),
    asset(script),
    asset("report.css"),
  ]);
  return { chartScript, chartStyle, chartLicence, pageScript, pageStyle };
}
