// A worker thread that sends the requests of `bench serve`, so that their load is not that of the
// server's own thread.
import { Agent, request } from "node:http";
import { setTimeout as sleep } from "node:timers/promises";
import { parentPort, workerData } from "node:worker_threads";
import type { ClientOptions, RequestTimes } from "./serve.js";

const { url, rates, requests, prompts, tokens } = workerData as ClientOptions;
const agent = new Agent({ keepAlive: true, maxSockets: Number.POSITIVE_INFINITY });

/** Reproducible uniform numbers in (0, 1] (xorshift32). */
function uniformSource(): () => number {
  let state = 0x9e3779b9;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return ((state >>> 0) + 1) / 2 ** 32;
  };
}

/** Streams one completion. Times are milliseconds since the request began. */
async function ask(prompt: readonly number[]): Promise<RequestTimes> {
  const start = performance.now();
  const body = JSON.stringify({
    model: "llamaforge",
    prompt,
    max_tokens: tokens,
    temperature: 0,
    ignore_eos: true,
    stream: true,
    stream_options: { include_usage: true },
  });
  return await new Promise((resolve, reject) => {
    const headers = { "content-type": "application/json", "content-length": body.length };
    const asked = request(`${url}/v1/completions`, { method: "POST", agent, headers });
    asked.on("error", reject);
    asked.on("response", (response) => {
      const events: number[] = [];
      let text = "";
      response.setEncoding("utf8");
      response.on("error", reject);
      response.on("data", (chunk: string) => {
        text += chunk;
        if (response.statusCode !== 200) return;
        const lines = text.split("\n\n");
        text = lines.pop() as string;
        for (const line of lines) {
          if (line.includes('"text"')) events.push(performance.now() - start);
          const usage = /"completion_tokens":(\d+)/.exec(line);
          if (usage) written = Number(usage[1]);
        }
      });
      let written = 0;
      response.on("end", () => {
        if (response.statusCode !== 200) {
          reject(new Error(`the server answered ${response.statusCode}: ${text.slice(0, 200)}`));
          return;
        }
        resolve({ events, tokens: written, endMs: performance.now() - start });
      });
    });
    asked.end(body);
  });
}

/** Sends the requests of one rate at random times, as independent users do. */
async function load(rate: number) {
  const random = uniformSource();
  const start = performance.now();
  const answers: Promise<RequestTimes | string>[] = [];
  let due = 0;
  for (let n = 0; n < requests; n++) {
    const wait = start + due - performance.now();
    if (wait > 0) await sleep(wait);
    const prompt = prompts[n % prompts.length] as number[];
    answers.push(ask(prompt).catch((error) => String((error as Error).message)));
    due += (-Math.log(random()) / rate) * 1000;
  }
  const times = await Promise.all(answers);
  return { times, seconds: (performance.now() - start) / 1000 };
}

// The first answers make the engine's graphs.
await Promise.all(prompts.slice(0, 4).map(ask));
for (const rate of rates) parentPort?.postMessage({ rate, ...(await load(rate)) });
agent.destroy();
