// Prepares the texts once, trains the recipe, and writes a continuation: node train.mjs
import { existsSync } from "node:fs";
import { generate, loadConfig, prepare, Trainer } from "llamaforge";

const data = "data/text";
if (!existsSync(`${data}/dataset.json`)) {
  await prepare({ inputs: [{ path: "texts" }], out: data, tokenizer: "tokenizer/tokenizer.json" });
}
const trainer = await Trainer.create(loadConfig("recipe.yaml"));
for await (const { step, loss, tokensPerSecond } of trainer.run()) {
  if (step % 10 === 0) console.log(step, loss.toFixed(3), Math.round(tokensPerSecond), "tokens/s");
}
const parts = generate(trainer.model, trainer.tokenizer, "The ", { maxTokens: 40 });
process.stdout.write("The ");
for await (const part of parts) process.stdout.write(part);
console.log();
