import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";

// A few rows of our own for each task, in the columns of its data set.

const things = ["sky", "grass", "blood", "sea"];
const colours = ["blue", "green", "red", "blue"];

const labelled = (text: string[]) => ({ text, label: ["A", "B", "C", "D"] });

const rows: Readonly<Record<string, object[]>> = {
  "colours/test": things.map((thing, i) => ({ thing, colour: colours[i] })),
  "piqa/validation": [
    { goal: "dry a shirt", sol1: "hang it in the wind", sol2: "hang it in the sea", label: 0 },
    { goal: "cut bread", sol1: "use a spoon", sol2: "use a long knife", label: 1 },
    { goal: "boil water", sol1: "heat it in a pot", sol2: "heat it in a hat", label: 0 },
  ],
  "openbookqa/test": [
    {
      id: "1",
      question_stem: "Ice in the sun",
      choices: labelled(["melts", "grows", "sings", "burns"]),
      answerKey: "A",
    },
    {
      id: "2",
      question_stem: "A plant without light",
      choices: labelled(["blooms", "runs", "dies", "shines"]),
      answerKey: "C",
    },
  ],
  "arc_easy/test": ["What falls from clouds?", "What do bees make?", "What pulls a magnet?"].map(
    (question, i) => ({
      id: String(i),
      question,
      choices: labelled(["rain", "honey", "iron filings", "old paper"]),
      answerKey: "ABC"[i],
    }),
  ),
  "arc_challenge/test": ["Which is a mammal?", "Which is a metal?"].map((question, i) => ({
    id: String(i),
    question,
    choices: labelled(["a whale", "copper", "a trout", "chalk"]),
    answerKey: "AB"[i],
  })),
  "winogrande/validation": [
    {
      sentence: "The cup did not fit into the box because the _ was too large.",
      option1: "cup",
      option2: "box",
      answer: "1",
    },
    {
      sentence: "Ann thanked Eve because _ had helped.",
      option1: "Ann",
      option2: "Eve",
      answer: "2",
    },
  ],
  "boolq/validation": [1, 0].map((label, idx) => ({
    passage: `The river ${idx} runs through seven towns. ${"It is long and slow. ".repeat(20)}`,
    question: "does the river run through towns",
    label,
    idx,
  })),
  "hellaswag/validation": [0, 2].map((label, ind) => ({
    ind,
    activity_label: "Baking bread",
    ctx_a: "A woman kneads dough.",
    ctx_b: "she",
    ctx: "A woman kneads dough. she",
    endings: ["puts it into the oven.", "reads the oven.", "waits for it to rise.", "swims."],
    label: String(label),
    split_type: "indomain",
  })),
};

/** Writes the rows of all tasks below a folder. */
export async function writeRows(folder: string): Promise<void> {
  for (const [path, list] of Object.entries(rows)) {
    await mkdir(join(folder, path.split("/")[0] as string), { recursive: true });
    const lines = list.map((row) => JSON.stringify(row)).join("\n");
    await writeFile(join(folder, `${path}.jsonl`), `${lines}\n`);
  }
}
