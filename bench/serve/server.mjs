// The process of run.mjs that trains and answers: a Trainer, configured by SERVE_BENCH (JSON, see
// run.mjs), and Fastify on one event loop.
import { once } from "node:events";
import Fastify from "fastify";
import { benchConfig } from "../../dist/bench/through-trainer.js";
import { parseDevice, presets, Trainer } from "../../dist/index.js";
import { meanHost } from "../../dist/train/run-times.js";
import { Ticks } from "../event-loop/ticks.mjs";

const { preset, device, warmup, sampleEvery, ...options } = JSON.parse(process.env.SERVE_BENCH);
const shape = { ...options, warmup, model: presets[preset], device: parseDevice(device) };
const sample = { every: sampleEvery, prompts: ["the people"], maxTokens: 32, temperature: 1 };
const trainer = await Trainer.create(benchConfig(shape, { sample }), { checkpoints: false });
let latest = null;

const app = Fastify();
app.get("/status", async () => ({ step: latest?.step ?? 0, loss: latest?.loss ?? null }));
app.post("/tokens", async ({ body }) => {
  const ids = await trainer.tokenizer.encode(body.text);
  return { tokens: ids.length };
});
await app.listen({ port: 0, host: "127.0.0.1" });
process.on("disconnect", () => process.exit(1));

let ticks;
const measured = [];
for await (const step of trainer.run()) {
  latest = step;
  if (step.step > warmup) measured.push(step);
  if (step.step === warmup) {
    ticks = new Ticks();
    process.send({ port: app.server.address().port });
  }
}
const { lateMs, share } = ticks.stop();
const times = measured.map(({ stepMs }) => stepMs).sort((a, b) => a - b);
const { activeMs, ...host } = meanHost(measured.map((step) => step.host));
process.send({
  device: trainer.deviceName,
  steps: measured.length,
  stepMs: times[times.length >> 1],
  javascriptMsPerStep: activeMs,
  collectionsPerStep: { minor: host.minor.count, major: host.major.count },
  timer: { lateMs, share },
});
// Requests that have already arrived are answered first.
await once(process, "message");
await app.close();
trainer.dispose();
process.disconnect();
