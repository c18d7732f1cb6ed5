// Writes 10,042 rows in the columns of HellaSwag, with texts as long as the real ones: for measuring
// speed where the real rows cannot be had.
//
//   node bench/eval/hellaswag-rows.mjs --data FOLDER [--rows 10042] [--seed 1]
//
// The words come from a fixed list, so every run writes the same file, FOLDER/hellaswag/validation.jsonl.
// The real contexts have 40 words on average (quartiles 25 and 52), the endings 21 (15 and 28).
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";

const { values } = parseArgs({
  options: {
    data: { type: "string" },
    rows: { type: "string", default: "10042" },
    seed: { type: "string", default: "1" },
  },
});
if (values.data === undefined) {
  console.error("usage: node bench/eval/hellaswag-rows.mjs --data FOLDER [--rows N] [--seed N]");
  process.exit(2);
}
const words = (
  "a man is seen the woman then begins to water and in on of with his her they people standing " +
  "speaking camera holding ball into around while another person shows how using hands down game " +
  "puts walks back up out ice board sitting front room throws boat large pool kitchen bike knife"
).split(" ");

/** Numbers below 1 from a linear congruential generator, the same on every machine. */
let state = Number(values.seed) >>> 0;
const random = () => {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
  return state / 2 ** 32;
};
const text = (least, most) => {
  const count = least + Math.floor(random() * (most - least + 1));
  return Array.from({ length: count }, () => words[Math.floor(random() * words.length)]).join(" ");
};

const lines = Array.from({ length: Number(values.rows) }, (_, ind) => {
  const [first, second] = [text(10, 66), text(1, 4)];
  return JSON.stringify({
    ind,
    activity_label: "Measuring speed",
    ctx_a: `${first}.`,
    ctx_b: second,
    ctx: `${first}. ${second}`,
    endings: Array.from({ length: 4 }, () => `${text(9, 33)}.`),
    split: "val",
    split_type: "indomain",
    label: String(Math.floor(random() * 4)),
    source_id: `made-${ind}`,
  });
});
mkdirSync(join(values.data, "hellaswag"), { recursive: true });
writeFileSync(join(values.data, "hellaswag/validation.jsonl"), `${lines.join("\n")}\n`);
console.log(`${lines.length} rows in ${join(values.data, "hellaswag/validation.jsonl")}`);
