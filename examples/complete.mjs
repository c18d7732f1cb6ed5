#!/usr/bin/env node
// Answers one prompt per line of standard input, all at once, in the order of the lines.
//
//   node complete.mjs runs/quickstart < prompts.txt
import { createInterface } from "node:readline";
import { Engine } from "llamaforge";

const [folder] = process.argv.slice(2);
if (!folder) throw new Error("usage: complete.mjs FOLDER < PROMPTS");
const engine = await Engine.open(folder, { maxQueue: 1_000_000 });
const answers = [];
for await (const line of createInterface({ input: process.stdin })) {
  answers.push(engine.complete(line, { maxTokens: 40, stop: ["\n"], seed: answers.length }));
}
for (const answer of await Promise.all(answers)) {
  console.log(JSON.stringify({ text: answer.text, tokens: answer.tokens.length }));
}
engine.dispose();
