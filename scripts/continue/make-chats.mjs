// Makes chats whose answers follow from their questions, for the checks of fine-tuning:
//
//   node scripts/continue/make-chats.mjs OUT.jsonl [300]
//
// Each asks for a word's place in a short list, so that a small model learns the form of the
// answers within minutes.
import { writeFileSync } from "node:fs";

const [out, count = "300"] = process.argv.slice(2);
if (out === undefined) throw new Error("usage: make-chats.mjs OUT.jsonl [COUNT]");
const words = "peace roads union people court harvest press nation law river".split(" ");
const places = ["first", "second", "third"];

const lines = Array.from({ length: Number(count) }, (_, number) => {
  const turns = 1 + (number % 3);
  const messages = Array.from({ length: turns }, (_, turn) => {
    const list = [0, 1, 2].map(
      (at) => words[(number * (at + 1) + turn * 7 + at * 3) % words.length],
    );
    const at = (number + turn) % 3;
    return [
      { role: "user", content: `Which word is ${places[at]}: ${list.join(", ")}?` },
      { role: "assistant", content: `The ${places[at]} word is ${list[at]}.` },
    ];
  }).flat();
  const system = number % 5 === 0 ? [{ role: "system", content: "Answer in one sentence." }] : [];
  return JSON.stringify({ messages: [...system, ...messages] });
});
writeFileSync(out, `${lines.join("\n")}\n`);
