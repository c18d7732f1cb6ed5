// A server that trains a model in its own process. It answers requests while steps run, because
// nothing here blocks on the device.
//
//   GET  /status    the latest step
//   POST /generate  { "prompt": "..." } -> the text of the answer, as it is written
//
// All requests share one engine, which writes their answers in one batch with the current weights.
// A token waits in the device's queue behind the steps already enqueued, two at most.
import { Readable } from "node:stream";
import Fastify, { type FastifyInstance } from "fastify";
import { Engine, QueueFullError, type RunConfig, type StepMetrics, Trainer } from "llamaforge";

export interface TrainingServer {
  app: FastifyInstance;
  engine: Engine;
  /** Resolves when the training ends and rejects when it fails. */
  trained: Promise<void>;
  /** Saves, ends the training, then closes the server. */
  stop(): Promise<void>;
}

export async function serveWhileTraining(config: RunConfig, port = 0): Promise<TrainingServer> {
  const trainer = await Trainer.create(config);
  const engine = new Engine(trainer.model, trainer.tokenizer, { maxBatch: 16, maxQueue: 64 });
  let latest: StepMetrics | null = null;

  const app = Fastify();
  app.get("/status", async () => ({
    step: latest?.step ?? trainer.startStep,
    steps: config.steps,
    loss: latest?.loss ?? null,
  }));
  const body = {
    type: "object",
    required: ["prompt"],
    properties: { prompt: { type: "string" }, maxTokens: { type: "integer", minimum: 1 } },
  };
  app.post<{ Body: { prompt: string; maxTokens?: number } }>(
    "/generate",
    { schema: { body } },
    async (request, reply) => {
      const { prompt, maxTokens = 16 } = request.body;
      const answer = engine.generate(prompt, { maxTokens, temperature: 0.8 });
      // A wrong request fails before the first text, while the status can still tell.
      const first = await answer.next().catch((error: Error) => {
        throw Object.assign(error, { statusCode: error instanceof QueueFullError ? 429 : 400 });
      });
      async function* texts() {
        if (first.value) yield first.value.text;
        // When the client leaves, the stream ends this loop, and with it the answer.
        for await (const { text } of answer) yield text;
      }
      reply.type("text/plain; charset=utf-8");
      return Readable.from(texts());
    },
  );
  await app.listen({ port, host: "127.0.0.1" });

  const train = async () => {
    for await (const step of trainer.run()) latest = step;
  };
  const trained = train();
  const stop = async () => {
    trainer.stop();
    await trained.finally(() => app.close());
    engine.dispose();
    await engine.idle();
    trainer.dispose();
  };
  return { app, engine, trained, stop };
}
