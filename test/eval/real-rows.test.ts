import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { Examples } from "../../lib/eval/few-shot.js";
import { likelihoodRequests } from "../../lib/eval/prompt.js";
import { publishedTasks } from "../../lib/eval/registry.js";
import { TaskRows } from "../../lib/eval/rows.js";
import type { ChoiceTask } from "../../lib/eval/task.js";
import { root } from "../cli/build.js";

// The rows of the published data sets are no part of the repository. Where they lie beside it, the
// requests of all rows are compared with those of lm-evaluation-harness 0.4.13: their number, and
// the SHA-256 of [row, prompt, continuation] as JSON Lines, from scripts/eval/harness_requests.py.

const data = join(root, "../shared/evaldata");

describe.runIf(existsSync(data))("all rows give the harness's requests:", () => {
  const rows = new TaskRows({ data });
  test.each([
    ["piqa", 0, 3676, "06b42289a8ae22fddc2c4d926634fac61f7b5da0437a52a39fed4c836236a025"],
    ["openbookqa", 0, 2000, "4494722a8a302c39005a92d070b493f3c6a5b9f56d59ad6c2e001c156194f3d1"],
    ["winogrande", 0, 2534, "9159ec5fbfc53a215e1a86b38c60e475c7430355cd8fdd03010b8aaa94eb8d5f"],
    ["arc_easy", 0, 9504, "52193f65a77f6d10947abaad7fe86ccf157ba10f5cc2ab3f7303b8f443ef8267"],
    ["arc_challenge", 0, 4688, "78806360ac3336a85cb39854298e88c622a1b37d7e5cdbbd236ab5c9fb140131"],
    ["boolq", 0, 6540, "05ac3369326a2f3c6e0f592a45d6957b654124ab791cdef47d7acaa45d104288"],
    ["mmlu_anatomy", 5, 540, "ec7bda828806aeb6c56271b0386ba556ec2be94744b71acfc5289572c025e251"],
    [
      "mmlu_professional_law",
      5,
      6136,
      "dee28772461874882e9edfdcaa8de042a853d1703595d62935c571872cc39a61",
    ],
    [
      "mmlu_us_foreign_policy",
      5,
      400,
      "c4491c47046612d730dc9e06d0ffc3ee9179af4ce878188585d2fa0cfb63a1b4",
    ],
  ])("%s with %d examples", async (name, count, requests, sha256) => {
    const task = publishedTasks.get(name) as ChoiceTask;
    const questions = await rows.questionsOf(task);
    const examples = await Examples.open(task, rows, { count });
    const hash = createHash("sha256");
    let found = 0;
    for (const [index, row] of questions.entries()) {
      for (const { prompt, continuation } of likelihoodRequests(task, row, examples.next(row))) {
        hash.update(`${JSON.stringify([index, prompt, continuation])}\n`);
        found++;
      }
    }
    expect(found).toBe(requests);
    expect(hash.digest("hex")).toBe(sha256);
  });
});
