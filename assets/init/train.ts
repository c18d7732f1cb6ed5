// Prepares the texts once, trains the recipe, and writes a continuation: node train.ts
// (Node 22.18 and newer run TypeScript; older ones with npx tsx train.ts)
import { existsSync } from "node:fs";
import { generate, loadConfig, prepare, type StepMetrics, Trainer } from "llamaforge";

const data = "data/text";
if (!existsSync(`${data}/dataset.json`)) {
  await prepare({ inputs: [{ path: "texts" }], out: data, tokenizer: "tokenizer/tokenizer.json" });
}
const show = ({ step, loss, tokensPerSecond }: StepMetrics): void => {
  if (step % 10 === 0) console.log(step, loss.toFixed(3), Math.round(tokensPerSecond), "tokens/s");
};
const trainer = await Trainer.create(loadConfig("recipe.yaml"));
for await (const step of trainer.run()) show(step);
const parts = generate(trainer.model, trainer.tokenizer, "The ", { maxTokens: 40 });
process.stdout.write("The ");
for await (const part of parts) process.stdout.write(part);
console.log();
