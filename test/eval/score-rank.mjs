// One rank of a test: node score-rank.mjs OPTIONS, where OPTIONS is JSON: { rank, worldSize, ports,
// strategies, model, tokenizer, requests, texts, answers }. For each strategy, it prints a line of
// JSON: the rank's scores. The program is plain JavaScript over dist/, so that it runs wherever the
// library does.
const library = new URL("../../dist/", import.meta.url);
const load = (module) => import(new URL(module, library).href);
const { Cluster } = await load("dist/cluster.js");
const { createModel } = await load("model/architectures.js");
const { Tokenizer } = await load("data/tokenizer.js");
const { Scorer } = await load("eval/scorer.js");
const { clusterWorld } = await load("eval/world.js");
const { parseDevice, setDefaultDevice } = await load("core/device.js");

const options = JSON.parse(process.argv[2]);
const { rank, worldSize, ports, strategies, requests, texts, answers } = options;
const device = parseDevice(options.device);
setDefaultDevice(device);
const tokenizer = await Tokenizer.load(options.tokenizer);
for (const [index, strategy] of strategies.entries()) {
  const world = {
    ...{ rank, worldSize, localRank: rank, localWorldSize: worldSize },
    ...{ host: "127.0.0.1", port: ports[index], runId: `scores ${strategy}`, launcher: "torchrun" },
  };
  const timeoutMs = 20_000;
  const settings = { device, strategy, reduce: "fp32", timeoutMs, startTimeoutMs: timeoutMs };
  const cluster = await Cluster.connect(world, settings);
  const store = { device, seed: 3, training: false, parallel: cluster.strategy };
  const model = await createModel(options.model, store);
  const scorer = new Scorer(model, tokenizer, { batch: 3, world: clusterWorld(cluster) });
  const counts = [];
  const likelihoods = await scorer.likelihoods(requests, (count) => counts.push(count));
  const sums = await scorer.textLikelihoods(texts);
  const written = await scorer.answers(answers);
  const done = counts.at(-1);
  process.stdout.write(`${JSON.stringify({ strategy, likelihoods, sums, written, done })}\n`);
  await cluster.close();
}
