import { expect, test } from "vitest";
import { trainByHand } from "../../examples/custom-loop.js";
import { trainCharacters } from "../../examples/custom-model.js";
import { tinyConfig, tinyData } from "../support/tiny-run.js";

test("the loop by hand trains a Llama", async () => {
  const { folder, data } = await tinyData();
  const { model: config } = tinyConfig(data, `${folder}/run`);
  const losses: number[] = [];
  const report = (_: number, loss: number) => losses.push(loss);
  const model = await trainByHand({
    data: { [data]: 1 },
    config,
    steps: 21,
    microBatch: 2,
    accumulation: 2,
    report,
  });
  expect(losses.length).toBe(3);
  expect(losses[2]).toBeLessThan(losses[0] as number);
  model.dispose();
});

test("a model of one's own on the plain operations learns", async () => {
  const text = "we the people of the united states, in order to form a more perfect union, ";
  const { first, last } = await trainCharacters(text.repeat(4), 120);
  expect(first).toBeGreaterThan(2.5);
  expect(last).toBeLessThan(0.2);
});
