// The process that sends the requests of `bench serve`. Its first message is its options; each
// further one is a measurement, and is answered.
import { on, once } from "node:events";
import { Agent, type IncomingMessage, request } from "node:http";
import { setTimeout as sleep } from "node:timers/promises";
import type { ClientOptions, ClientTask, LoadTimes, RequestTimes } from "./serve.js";

// The iterator keeps messages that come early.
const messages = on(process, "message");
const [options] = (await messages.next()).value as [ClientOptions];
const { url, prompts, tokens } = options;
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

/** An answer as it came. Times are milliseconds. */
interface Arrived {
  chunks: { atMs: number; bytes: Buffer }[];
  endMs: number;
}

/** Streams one completion. Nothing is parsed meanwhile, so that this process keeps up. */
async function ask(prompt: readonly number[]): Promise<Arrived> {
  const body = JSON.stringify({
    model: "llamaforge",
    prompt,
    max_tokens: tokens,
    temperature: 0,
    ignore_eos: true,
    stream: true,
    stream_options: { include_usage: true },
  });
  const headers = { "content-type": "application/json", "content-length": body.length };
  const asked = request(`${url}/v1/completions`, { method: "POST", agent, headers });
  asked.end(body);
  const [response] = (await once(asked, "response")) as [IncomingMessage];
  const chunks: Arrived["chunks"] = [];
  response.on("data", (bytes: Buffer) => chunks.push({ atMs: performance.now(), bytes }));
  await once(response, "end");
  const endMs = performance.now();
  if (response.statusCode !== 200) {
    const text = Buffer.concat(chunks.map(({ bytes }) => bytes)).toString();
    throw new Error(`the server answered ${response.statusCode}: ${text.slice(0, 200)}`);
  }
  return { chunks, endMs };
}

/** The times of an answer's events that have text, from a moment on. */
function timesOf({ chunks, endMs }: Arrived, startMs: number): RequestTimes {
  const events: number[] = [];
  let written = 0;
  let text = "";
  for (const { atMs, bytes } of chunks) {
    text += bytes;
    const whole = text.split("\n\n");
    text = whole.pop() as string;
    for (const event of whole) {
      if (event.includes('"text"')) events.push(atMs - startMs);
      const [, usage] = /"completion_tokens":(\d+)/.exec(event) ?? [];
      if (usage !== undefined) written = Number(usage);
    }
  }
  return { events, tokens: written, endMs: endMs - startMs };
}

/** Sends requests at random times, as independent users do. */
async function load(rate: number, requests: number): Promise<LoadTimes> {
  const random = uniformSource();
  const start = performance.now();
  const answers: Promise<RequestTimes | string>[] = [];
  let due = 0;
  for (let n = 0; n < requests; n++) {
    const wait = start + due - performance.now();
    if (wait > 0) await sleep(wait);
    const began = performance.now();
    const answer = ask(prompts[n % prompts.length] as number[]);
    answers.push(
      answer.then(
        (arrived) => timesOf(arrived, began),
        (error: Error) => error.message,
      ),
    );
    due += (-Math.log(random()) / rate) * 1000;
  }
  const times = await Promise.all(answers);
  return { times, seconds: (performance.now() - start) / 1000 };
}

/** Streams that begin at once. */
async function together(streams: number): Promise<RequestTimes[]> {
  const start = performance.now();
  const asked = Array.from({ length: streams }, (_, n) =>
    ask(prompts[n % prompts.length] as number[]),
  );
  const arrived = await Promise.all(asked);
  return arrived.map((one) => timesOf(one, start));
}

process.on("disconnect", () => process.exit(1));
// The first answers make the engine's graphs.
await Promise.all(prompts.slice(0, 4).map(ask));
for await (const [task] of messages as AsyncIterable<[ClientTask]>) {
  const answer = "rate" in task ? load(task.rate, task.requests) : together(task.streams);
  process.send?.(await answer);
}
