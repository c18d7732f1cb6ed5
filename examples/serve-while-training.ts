// A server that trains a model in its own process. It answers requests while steps run, because
// nothing here blocks on the device.
//
//   GET  /status    the latest step
//   POST /generate  { "prompt": "..." } -> { "text": "..." }, with the current weights
//
// A token waits in the device's queue behind the steps already enqueued, two at most.
import Fastify, { type FastifyInstance } from "fastify";
import { generate, type RunConfig, type StepMetrics, Trainer } from "llamaforge";

export interface TrainingServer {
  app: FastifyInstance;
  /** Resolves when the training ends and rejects when it fails. */
  trained: Promise<void>;
  /** Saves, ends the training, then closes the server. */
  stop(): Promise<void>;
}

export async function serveWhileTraining(config: RunConfig, port = 0): Promise<TrainingServer> {
  const trainer = await Trainer.create(config);
  let latest: StepMetrics | null = null;

  const app = Fastify();
  app.get("/status", async () => ({
    step: latest?.step ?? trainer.startStep,
    steps: config.steps,
    loss: latest?.loss ?? null,
  }));
  const body = { type: "object", required: ["prompt"], properties: { prompt: { type: "string" } } };
  app.post<{ Body: { prompt: string } }>("/generate", { schema: { body } }, async (request) => {
    let text = "";
    const { model, tokenizer } = trainer;
    const options = { maxTokens: 16, temperature: 0.8 };
    for await (const piece of generate(model, tokenizer, request.body.prompt, options))
      text += piece;
    return { text };
  });
  await app.listen({ port, host: "127.0.0.1" });

  const train = async () => {
    for await (const step of trainer.run()) latest = step;
  };
  const trained = train();
  const stop = async () => {
    trainer.stop();
    await trained.finally(() => app.close());
    trainer.dispose();
  };
  return { app, trained, stop };
}
