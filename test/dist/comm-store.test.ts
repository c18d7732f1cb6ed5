/** docs/faults.md, row P5: the store, and foreign connections at its port. */
import { connect, createServer, type Socket } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { ArgumentError } from "../../lib/core/errors.js";
import { freePort } from "../../lib/dist/free-port.js";
import { Store } from "../../lib/dist/store.js";
import { buildLibrary } from "../cli/build.js";
import { endRanks, runRanks, startOne, startRanks } from "./comm-ranks.js";

beforeAll(buildLibrary);
afterAll(endRanks);
const cpu = { device: "cpu" };

/** Resolves when a port accepts a connection. The connection sends nothing and ends. */
async function untilListening(port: number): Promise<void> {
  for (;;) {
    const socket = connect(port, "127.0.0.1");
    const connected = await new Promise((resolve) => {
      socket.once("connect", () => resolve(true)).once("error", () => resolve(false));
    });
    socket.destroy();
    if (connected) return;
    await sleep(50);
  }
}

test("keys, counters and barriers among 4 ranks", async () => {
  const results = await runRanks("store", 4, { options: cpu });
  results.forEach(({ code, said, stderr }, rank) => {
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
    const [{ wrong, late, total, big, never, alone, tooLarge }, { closed }] = said;
    expect({ wrong, late, total }).toEqual({ wrong: 0, late: "now", total: 10 });
    expect(big).toEqual([5 << 20, (rank + 1) % 4]);
    expect(never).toBe('[store] no rank has set the key "never" in time');
    if (rank === 0)
      expect(alone).toBe(
        '[store] the barrier "alone" was not reached in time by these ranks: 1, 2, 3',
      );
    expect(tooLarge).toBe("ERR_ARGUMENT");
    expect(closed).toContain("closed");
  });
  expect(
    results
      .map(({ said }) => said[0].count)
      .sort((a, b) => a - b)
      .at(-1),
  ).toBe(10);
});

test("wrong options are named, all at once", async () => {
  const bad = { host: "", port: 0, rank: 2, worldSize: 2, token: "", timeoutMs: 0 };
  await expect(Store.connect(bad)).rejects.toThrow(ArgumentError);
  await expect(Store.connect(bad)).rejects.toThrow(/port .* rank .* timeout .* host/);
  for (const none of [null, undefined, 5, "x", []]) {
    await expect(Store.connect(none as never)).rejects.toThrow(ArgumentError);
  }
});

describe("who does not belong to the run is refused, and the run goes on", () => {
  test("garbage, a slow stranger, and a message that claims to be huge", async () => {
    const port = await freePort();
    const zero = await startOne("connectOnly", 2, 0, { port, options: cpu });
    const strangers = ["GET / HTTP/1.1\r\n\r\n", "", "\x01", "\xff\xff\xff\x7f".repeat(1000)];
    const answers = await Promise.all(
      strangers.map(async (text) => {
        for (;;) {
          const socket = connect(port, "127.0.0.1");
          const connected = await new Promise((resolve) => {
            socket.once("connect", () => resolve(true)).once("error", () => resolve(false));
          });
          if (!connected) {
            await sleep(50);
            continue;
          }
          socket.on("error", () => {});
          socket.write(Buffer.from(text, "latin1"));
          let answer = "";
          socket.on("data", (data) => {
            answer += data.toString("latin1");
          });
          const ended = new Promise((resolve) => socket.once("close", resolve));
          if (text.length > 1) await ended;
          return { socket, answer };
        }
      }),
    );
    expect(answers[0]?.answer).toContain("not a message of LlamaForge");
    const one = await startOne("connectOnly", 2, 1, { port, options: cpu });
    for (const rank of [zero, one]) {
      const { code, said } = await rank.ended;
      expect({ code, said }).toEqual({ code: 0, said: [{ connected: true }] });
    }
    for (const { socket } of answers) socket.destroy();
  });

  test("a rank of another run, and one that is there twice", async () => {
    const port = await freePort();
    const zero = await startOne("connectOnly", 2, 0, { port, options: cpu });
    const other = await startOne("connectOnly", 2, 1, { port, token: "another", options: cpu });
    const refused = await other.ended;
    expect(refused.code).toBe(6);
    expect(refused.said[0]).toMatchObject({ name: "PeerError", code: "ERR_PEER" });
    expect(refused.said[0].message).toContain("belongs to another run");
    const few = await startOne("connectOnly", 2, 1, { port, believedWorldSize: 3, options: cpu });
    const wrongWorld = await few.ended;
    expect(wrongWorld.code).toBe(6);
    expect(wrongWorld.said[0].message).toContain("a world of 3 ranks and rank 0 for 2");
    const one = await startOne("connectOnly", 2, 1, { port, options: cpu });
    for (const rank of [zero, one]) expect((await rank.ended).code).toBe(0);
  });

  test("silent strangers, as many as the store takes and more, keep no rank out: the oldest make room", async () => {
    const port = await freePort();
    const zero = await startOne("connectOnly", 2, 0, { port, options: cpu });
    await untilListening(port);
    let sentAway = 0;
    const sockets = new Set<Socket>();
    const stranger = () => {
      const socket = connect(port, "127.0.0.1").on("error", () => {});
      sockets.add(socket);
      socket.on("data", (data) => {
        if (data.includes("too many connections at once")) sentAway++;
      });
      // A dropped connection returns at once, as a port scanner or a health check does.
      socket.on("close", () => {
        if (sockets.delete(socket) && sentAway < 2000) stranger();
      });
    };
    try {
      for (let i = 0; i < 300; i++) stranger();
      for (let waited = 0; sentAway < 44 && waited < 4000; waited += 50) await sleep(50);
      expect(sentAway).toBeGreaterThanOrEqual(44);
      const one = await startOne("connectOnly", 2, 1, { port, options: cpu });
      for (const rank of [zero, one]) {
        const { code, said } = await rank.ended;
        expect({ code, said }).toEqual({ code: 0, said: [{ connected: true }] });
      }
    } finally {
      for (const socket of [...sockets]) {
        sockets.delete(socket);
        socket.destroy();
      }
      zero.child.kill("SIGKILL");
    }
  });

  test("all ranks of a large world may come at once beside as many strangers; the oldest of more make room", async () => {
    const port = await freePort();
    const worldSize = 300;
    const zero = await startOne("connectOnly", worldSize, 0, { port, options: cpu });
    await untilListening(port);
    let sentAway = 0;
    const sockets = Array.from({ length: 2 * worldSize + 20 }, () => {
      const socket = connect(port, "127.0.0.1").on("error", () => {});
      socket.on("data", (data) => {
        if (data.includes("too many connections at once")) sentAway++;
      });
      return socket;
    });
    try {
      // None of them identifies itself, so all are refused after five seconds.
      for (let waited = 0; sentAway < 20 && waited < 4000; waited += 50) await sleep(50);
      await sleep(300);
      expect(sentAway).toBe(20);
    } finally {
      for (const socket of sockets) socket.destroy();
      zero.child.kill("SIGKILL");
    }
  });

  test("a rank that is told that there is no room tries again until there is", async () => {
    // An answer of the store by csrc/comm/frame.h: u32 length, u8 type, u64 id, text. Type 71 asks
    // to try again, 64 is the welcome.
    const frame = (type: number, text: string) => {
      const bytes = Buffer.alloc(17 + text.length);
      bytes.writeUInt32LE(13 + text.length, 0);
      bytes.writeUInt8(type, 4);
      bytes.writeUInt32LE(text.length, 13);
      bytes.write(text, 17);
      return bytes;
    };
    let asked = 0;
    const server = createServer((socket) => {
      socket.on("error", () => {});
      socket.once("data", () => socket.end(++asked < 3 ? frame(71, "no room") : frame(65, "done")));
    });
    const port = await new Promise<number>((resolve) => {
      server.listen(0, "127.0.0.1", () => resolve((server.address() as { port: number }).port));
    });
    const options = { host: "127.0.0.1", port, rank: 1, worldSize: 2, token: "", timeoutMs: 5000 };
    // The third answer is a refusal, which is final.
    await expect(Store.connect(options)).rejects.toThrow(/was refused by rank 0 at .*: done/);
    expect(asked).toBe(3);
    server.close();
  });

  test("two processes that say they are the same rank", async () => {
    const ranks = await startRanks("connectOnly", 3, {
      ranks: [0, 1, 1],
      options: { ...cpu, startMs: 2500 },
    });
    const results = await Promise.all(ranks.map(({ ended }) => ended));
    expect(results.map(({ code }) => code)).toEqual([6, 6, 6]);
    const messages = results.map(({ said }) => said[0].message as string);
    expect(messages.some((message) => message.includes("rank 1 is here already"))).toBe(true);
    // Rank 0 names the missing ranks and the refused connections.
    expect(messages[0]).toMatch(/2 of 3 ranks have come; missing: 2\n.*rank 1 is here already/);
  });
});

describe("a start that cannot succeed ends with 6 and says why", () => {
  test("the port is taken", async () => {
    const server = createServer(() => {});
    const port = await new Promise<number>((resolve) => {
      server.listen(0, "127.0.0.1", () => resolve((server.address() as { port: number }).port));
    });
    const [zero] = await runRanks("connectOnly", 1, { port, options: cpu });
    expect(zero?.code).toBe(6);
    expect(zero?.said[0].message).toContain(`port ${port} of this host is taken`);
    server.close();
  });

  test("another program answers there", async () => {
    const server = createServer((socket) => {
      socket.on("error", () => {});
      socket.end("HTTP/1.1 400 Bad Request\r\n\r\n");
    });
    const port = await new Promise<number>((resolve) => {
      server.listen(0, "127.0.0.1", () => resolve((server.address() as { port: number }).port));
    });
    const [one] = await runRanks("connectOnly", 2, { port, ranks: [1], options: cpu });
    expect(one?.code).toBe(6);
    expect(one?.said[0].message).toContain("another program has that port");
    server.close();
  });

  test("a rank does not come, or rank 0 is not there", async () => {
    const options = { ...cpu, startMs: 1500 };
    const came = await runRanks("connectOnly", 4, { ranks: [0, 2], options });
    for (const { code, said } of came) {
      expect(code).toBe(6);
      expect(said[0].message).toContain("after 1.5 s 2 of 4 ranks have come; missing: 1, 3");
    }
    const [alone] = await runRanks("connectOnly", 2, { ranks: [1], options });
    expect(alone?.code).toBe(6);
    expect(alone?.said[0].message).toMatch(/found no rank 0 at 127.0.0.1:\d+ within 1.5 s/);
  });
});
