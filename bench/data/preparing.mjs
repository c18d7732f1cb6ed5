// Runs `prepare` in a process of its own and watches that process from outside.
import { spawn } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { library, mode } from "./options.mjs";

/**
 * Interval in milliseconds. The kernel takes tens of milliseconds of a large process's time to
 * report its memory.
 */
const watchMs = mode === "storm" ? 2000 : 250;

/**
 * Starts a preparation in a process of its own, so that its time and memory can be measured
 * separately.
 */
export function preparing(options) {
  const program = `
    const { prepare } = await import(${JSON.stringify(library("prepare/prepare.js"))});
    const r = await prepare(${JSON.stringify(options)});
    const { userCPUTime: u, systemCPUTime: s } = process.resourceUsage();
    console.log(JSON.stringify({ cpu: (u + s) / 1e6, peak: process.resourceUsage().maxRSS * 1024,
      resumed: r.resumedDocuments, splits: r.dataset.splits, sources: r.dataset.sources,
      longest: r.longest, warnings: r.warnings }));`;
  const child = spawn(process.execPath, ["--input-type=module", "-e", program], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  let text = "";
  child.stdout.on("data", (data) => {
    text += data;
  });
  let peak = 0;
  let cpu = 0;
  const watch = setInterval(() => {
    const all = tree(child.pid);
    peak = Math.max(peak, all.bytes);
    cpu = Math.max(cpu, all.cpu);
  }, watchMs);
  const done = new Promise((settle) => {
    child.on("exit", (code, signal) => {
      clearInterval(watch);
      if (code !== 0 && signal !== "SIGKILL")
        throw new Error(`prepare ended with ${code ?? signal}`);
      const result = code === 0 ? JSON.parse(text.trim().split("\n").at(-1)) : null;
      settle({ code, signal, result, peak, cpu });
    });
  });
  return { child, done };
}

/** Memory and CPU seconds of a process and its children. */
function tree(pid) {
  const total = { bytes: 0, cpu: 0 };
  const visit = (id) => {
    try {
      const fields = readFileSync(`/proc/${id}/stat`, "utf8").split(") ")[1].split(" ");
      // Pss counts memory that several processes share only once.
      const rollup = readFileSync(`/proc/${id}/smaps_rollup`, "utf8");
      total.bytes += Number(/^Pss:\s+(\d+)/m.exec(rollup)[1]) * 1024;
      total.cpu += (Number(fields[11]) + Number(fields[12])) / 100;
      const tasks = readdirSync(`/proc/${id}/task`);
      for (const task of tasks) {
        const children = readFileSync(`/proc/${id}/task/${task}/children`, "utf8").trim();
        for (const child of children === "" ? [] : children.split(" ")) visit(child);
      }
    } catch {}
  };
  visit(pid);
  return total;
}
