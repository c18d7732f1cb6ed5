import { access } from "node:fs/promises";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { expect, test } from "vitest";
import { serveWhileTraining } from "../../examples/serve-while-training.js";
import { tinyConfig, tinyData } from "../support/tiny-run.js";

test("a server answers while it trains, and saves when it is stopped", async () => {
  const { folder, data } = await tinyData();
  const out = join(folder, "run");
  // The run has more steps than the test waits for, so it trains until it is stopped.
  const steps = 1_000_000;
  const { app, engine, trained, stop } = await serveWhileTraining(tinyConfig(data, out, { steps }));
  const { port } = app.server.address() as AddressInfo;
  const url = `http://127.0.0.1:${port}`;
  const status = async () => (await (await fetch(`${url}/status`)).json()) as { step: number };
  let ended = false;
  void trained.then(() => {
    ended = true;
  });
  for (let { step } = await status(); step < 3; { step } = await status()) await sleep(5);
  const generate = (body: object, signal?: AbortSignal) =>
    fetch(`${url}/generate`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(body),
      ...(signal && { signal }),
    });
  const answers = await Promise.all(
    ["The senate", "My fellow", "War"].map((prompt) => generate({ prompt })),
  );
  for (const answer of answers) {
    expect(answer.status).toBe(200);
    expect((await answer.text()).length).toBeGreaterThan(0);
  }
  expect((await generate({})).status).toBe(400);
  expect((await generate({ prompt: "word ".repeat(500) })).status).toBe(400);
  // A client that leaves in the middle of its answer takes the answer with it.
  const leaving = new AbortController();
  const begun = await generate({ prompt: "a", maxTokens: 10_000 }, leaving.signal);
  expect(begun.status).toBe(200);
  leaving.abort();
  await begun.text().catch(() => {});
  while (engine.state.running > 0) await sleep(5);
  expect(ended).toBe(false);
  const { step: before } = await status();
  await stop();
  await expect(fetch(`${url}/status`)).rejects.toThrow();
  const names = Array.from(
    { length: 20 },
    (_, i) => `step-${String(before + i).padStart(10, "0")}`,
  );
  const found = await Promise.all(
    names.map((name) =>
      access(join(out, name)).then(
        () => true,
        () => false,
      ),
    ),
  );
  expect(found).toContain(true);
});
