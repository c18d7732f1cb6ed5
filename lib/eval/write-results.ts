import { dirname } from "node:path";
import { makeFolder } from "../files/make-folder.js";
import { replaceFile } from "../files/replace-file.js";
import type { EvaluationResults } from "./results.js";

/**
 * Writes results as JSON, atomically. Each logged sample takes one line. The file is made of pieces,
 * because the samples of many tasks are longer than a string may be.
 */
export async function writeResults(file: string, evaluation: EvaluationResults): Promise<void> {
  const { samples, ...rest } = evaluation;
  const text = JSON.stringify(rest, null, 2);
  const pieces: Buffer[] = [];
  const add = (piece: string) => pieces.push(Buffer.from(piece));
  if (samples === undefined) add(`${text}\n`);
  else {
    add(`${text.slice(0, -"\n}".length)},\n  "samples": {`);
    for (const [index, [task, questions]] of Object.entries(samples).entries()) {
      add(`${index > 0 ? "," : ""}\n    ${JSON.stringify(task)}: [`);
      for (const [place, sample] of questions.entries()) {
        add(`${place > 0 ? "," : ""}\n      ${JSON.stringify(sample)}`);
      }
      add("\n    ]");
    }
    add("\n  }\n}\n");
  }
  await makeFolder(dirname(file));
  await replaceFile(file, Buffer.concat(pieces));
}
