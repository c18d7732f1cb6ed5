// Many streams whose clients leave at any moment, for a while: everything comes back.
import { readdirSync } from "node:fs";
import { afterAll, expect, test } from "vitest";
import { memory } from "../../lib/core/runtime.js";
import { settled } from "../support/settled.js";
import { open, post, served, tinyModel, until } from "./support.js";

const seconds = Number(process.env.LLAMAFORGE_STORM_SECONDS ?? 20);
const streams = 64;
const parts = await tinyModel(512);
afterAll(() => parts[0].dispose());

/** Numbers that look random, the same in each run (mulberry32). */
class Random {
  #state: number;
  constructor(seed: number) {
    this.#state = seed;
  }
  /** An integer from 0 to below `end`. */
  below(end: number): number {
    this.#state = (this.#state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(this.#state ^ (this.#state >>> 15), 1 | this.#state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) % end;
  }
}

/** Files and sockets that this process holds. */
const handles = (): number => readdirSync("/proc/self/fd").length;

test(
  `${streams} streams with clients that leave, for ${seconds} s`,
  async () => {
    const server = await served(parts, { stallSeconds: 1 }, { maxBatch: streams });
    await post(`${server.url}/v1/completions`, { prompt: "warm", max_tokens: 5, n: 4 });
    await settled();
    await new Promise((resolve) => setTimeout(resolve, 100));
    const before = { handles: handles() };
    let end = 0;
    const count = { whole: 0, left: 0, refused: 0 };
    const firstTokenMs: number[] = [];

    /** One request after the other; some clients leave, some dawdle, some are wrong. */
    const client = async (seed: number): Promise<void> => {
      const random = new Random(seed);
      while (performance.now() < end) {
        const chat = random.below(3) === 0;
        const ask = {
          ...(chat
            ? { messages: [{ role: "user", content: "word ".repeat(random.below(40) + 1) }] }
            : { prompt: "x ".repeat(random.below(120)), logprobs: random.below(3) || null }),
          max_tokens: random.below(20) === 0 ? "many" : 1 + random.below(120),
          n: 1 + Math.floor(random.below(8) / 6),
          stream: random.below(5) > 0,
          presence_penalty: random.below(4) === 0 ? 1 : 0,
          logit_bias: random.below(4) === 0 ? { 100: 1 } : null,
          ignore_eos: true,
        };
        const started = performance.now();
        const path = chat ? "/v1/chat/completions" : "/v1/completions";
        const { request, response } = open(server.url, path, ask);
        const fate = random.below(4);
        try {
          if (fate === 0) {
            setTimeout(() => request.destroy(), random.below(60));
          }
          const stream = await response;
          if (stream.statusCode !== 200) count.refused++;
          let chunks = 0;
          const leavesAt = fate === 1 ? random.below(30) : Number.POSITIVE_INFINITY;
          for await (const _ of stream) {
            if (chunks === 0 && ask.stream) firstTokenMs.push(performance.now() - started);
            if (++chunks > leavesAt) break;
            if (fate === 2 && chunks % 8 === 0) await new Promise((done) => setTimeout(done, 5));
          }
          if (chunks <= leavesAt) count.whole++;
          else count.left++;
        } catch {
          count.left++;
        } finally {
          request.destroy();
        }
      }
    };
    const { engine } = server;
    /** All clients for half of the time. @returns the tensors that are left once all have ended */
    const storm = async (firstSeed: number): Promise<number> => {
      end = performance.now() + seconds * 500;
      await Promise.all(Array.from({ length: streams }, (_, i) => client(firstSeed + i)));
      await until(() => engine.state.running === 0 && engine.state.waiting === 0);
      await engine.idle();
      await settled();
      return memory().tensors;
    };
    // The engine keeps a recorded step for each of a few sizes; the first half meets all of them.
    const recorded = await storm(1);
    const left = await storm(1 + streams);
    expect(engine.state.freePages).toBe(engine.state.pages);
    expect(count.whole).toBeGreaterThan(streams);
    expect(count.left).toBeGreaterThan(streams);
    expect(count.refused).toBeGreaterThan(0);
    expect(server.errors).toEqual([]);
    await until(() => handles() <= before.handles);
    // The tables of penalties and biases stay for the next answers that need them.
    expect(left).toBeLessThanOrEqual(recorded + 2);
    firstTokenMs.sort((a, b) => a - b);
    const at = (share: number) => firstTokenMs[Math.floor(firstTokenMs.length * share)]?.toFixed(0);
    console.log(
      `${count.whole} whole, ${count.left} left, ${count.refused} refused; ` +
        `first token after ${at(0.5)} ms (p50), ${at(0.99)} ms (p99)`,
    );
    await server.close();
  },
  120_000 + seconds * 1000,
);
