import { execFile } from "node:child_process";
import { join } from "node:path";
import { promisify } from "node:util";
import { beforeAll, expect, test } from "vitest";
import { Tokenizer } from "../../lib/data/tokenizer.js";
import { freePort } from "../../lib/dist/free-port.js";
import type { Answer, Likelihood } from "../../lib/eval/model-answers.js";
import { Scorer } from "../../lib/eval/scorer.js";
import { createModel } from "../../lib/model/architectures.js";
import { llamaConfig } from "../../lib/model/llama-config.js";
import { buildLibrary, root } from "../cli/build.js";
import { device, sharedGpu } from "../dist/comm-ranks.js";

beforeAll(() => buildLibrary());

/** A tied head: its weights are gathered again in the passes that score. */
const model = llamaConfig({
  vocabSize: 4096,
  hiddenSize: 32,
  intermediateSize: 48,
  layers: 2,
  heads: 2,
  kvHeads: 1,
  contextLength: 96,
  ropeTheta: 10_000,
  rmsNormEps: 1e-5,
  tieEmbeddings: true,
});
const block = "The farmer keeps the railway in 1790. The court asks good roads in 1801. ".repeat(2);
/** Shared prefixes, single rows and a number of batches that is odd. */
const requests = [
  ...["builds", "asks", "keeps peace"].map((word) => ({
    prompt: `${block}The union ${word}`,
    continuation: ` the harvest of ${word}`,
  })),
  ...[" peace", " its word and the railway", " war"].flatMap((continuation) => [
    { prompt: "The people ask for", continuation },
    { prompt: "Our nation remembers", continuation },
  ]),
  { prompt: "", continuation: "A free press" },
  { prompt: "A senate of one", continuation: " builds roads" },
  { prompt: "Who", continuation: " asks?" },
];
const texts = [block, "one", `${block}${block}${block}`];
const answers = ["The senate", "A court", "Roads"].map((prompt) => ({
  ...{ prompt, until: ["\n"], maxTokens: 4, temperature: 0, topP: 1, seed: 1 },
}));

interface Said {
  strategy: string;
  likelihoods: Likelihood[];
  sums: number[];
  written: Answer[];
  done: number;
}

test("two ranks have one rank's scores, also with sharded weights", async () => {
  const tokenizer = join(root, "assets/quickstart");
  const strategies = ["replicated", "full_shard"];
  const ports = [await freePort(), await freePort()];
  const run = async (rank: number): Promise<Said[]> => {
    const options = { rank, worldSize: 2, ports, strategies, model, tokenizer, device };
    const { stdout } = await promisify(execFile)(
      process.execPath,
      [
        join(root, "test/eval/score-rank.mjs"),
        JSON.stringify({ ...options, requests, texts, answers }),
      ],
      { env: { ...process.env, LLAMAFORGE_THREADS: "1", ...sharedGpu(rank) }, timeout: 60_000 },
    );
    return stdout
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line) as Said);
  };
  const alone = await createModel(model, { seed: 3, training: false });
  const scorer = new Scorer(alone, await Tokenizer.load(tokenizer), { batch: 3 });
  const likelihoods = await scorer.likelihoods(requests);
  const sums = await scorer.textLikelihoods(texts);
  const written = await scorer.answers(answers);
  const [first, second] = await Promise.all([run(0), run(1)]);
  expect(second).toEqual(first);
  expect(first?.map(({ strategy }) => strategy)).toEqual(strategies);
  for (const said of first ?? []) {
    expect(said.done).toBe(requests.length);
    expect(said.written).toEqual(written);
    for (const [index, sum] of sums.entries()) expect(said.sums[index]).toBeCloseTo(sum, 4);
    for (const [index, { logLikelihood, ...rest }] of likelihoods.entries()) {
      const { logLikelihood: nats, ...others } = said.likelihoods[index] as Likelihood;
      expect(Math.abs(nats / logLikelihood - 1), `request ${index}`).toBeLessThan(1e-5);
      expect(others).toEqual(rest);
    }
  }
  alone.dispose();
});
