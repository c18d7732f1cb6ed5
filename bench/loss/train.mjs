// One run of run.mjs: trains the recipe in LOSS_RECIPE (JSON) without checkpoints, up to a step, with
// the given choices of fp8.
import { resolveConfig, Trainer } from "../../dist/index.js";
import { fp8Choices } from "../../dist/ops/fp8.js";

const { recipe, until, choices } = JSON.parse(process.env.LOSS_RECIPE);
const config = resolveConfig(recipe);
Object.assign(fp8Choices, choices);
const notices = [];
const trainer = await Trainer.create(config, {
  checkpoints: false,
  resume: "none",
  onNotice: (message) => {
    notices.push(message);
    console.error(`${config.name}: ${message}`);
  },
});
for await (const { step, loss, validation, tokensPerSecond } of trainer.run()) {
  if (step === until) trainer.stop();
  if (!validation) continue;
  const speed = Math.round(tokensPerSecond).toLocaleString("en-US");
  console.error(
    `${config.name}: step ${step}, loss ${loss.toFixed(4)}, validation ${validation.loss.toFixed(4)}, ${speed} tokens/s`,
  );
}
trainer.dispose();
process.stdout.write(`${JSON.stringify({ notices })}\n`);
