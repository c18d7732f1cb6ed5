// docs/faults.md, row P5, from a rank's side: no request waits for ever, whatever answers at rank
// 0's address. csrc/fuzz/store_fuzz.cpp fuzzes the server's input, and test/dist/comm-store.test.ts
// has the foreign connections.
import { once } from "node:events";
import { type AddressInfo, createServer, type Socket } from "node:net";
import { expect, test } from "vitest";
import { Store } from "../../lib/dist/store.js";

const types = { hello: 1, get: 3, goodbye: 6, welcome: 64, done: 66, value: 67, failed: 68 };

function frame(type: number, id: bigint, body: Buffer): Buffer {
  const head = Buffer.alloc(13);
  head.writeUInt32LE(9 + body.length, 0);
  head.writeUInt8(type, 4);
  head.writeBigUInt64LE(id, 5);
  return Buffer.concat([head, body]);
}

/** A store of two ranks that answers a `get` with the given bytes. */
async function connectTo(answer: (socket: Socket, id: bigint) => void) {
  const server = createServer((socket) => {
    let bytes = Buffer.alloc(0);
    socket.on("error", () => {});
    socket.on("data", (data) => {
      bytes = Buffer.concat([bytes, data]);
      while (bytes.length >= 4 && bytes.length >= 4 + bytes.readUInt32LE(0)) {
        const [type, id] = [bytes.readUInt8(4), bytes.readBigUInt64LE(5)];
        bytes = bytes.subarray(4 + bytes.readUInt32LE(0));
        if (type === types.hello) socket.write(frame(types.welcome, 0n, Buffer.alloc(4)));
        if (type === types.goodbye) socket.write(frame(types.done, id, Buffer.alloc(0)));
        if (type === types.get) answer(socket, id);
      }
    });
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  const options = { host: "127.0.0.1", port, rank: 1, worldSize: 2, token: "t", timeoutMs: 5000 };
  return { store: await Store.connect(options), server };
}

const tooShort = Buffer.from([9, 0, 0, 0, 1]);

test.each([
  ["a value shorter than it says", (s, id) => s.write(frame(types.value, id, tooShort))],
  ["a value of nothing", (s, id) => s.write(frame(types.value, id, Buffer.alloc(0)))],
  ["a reason shorter than it says", (s, id) => s.write(frame(types.failed, id, tooShort))],
  ["a frame of no length", (s) => s.write(Buffer.alloc(64))],
  ["a frame of 4 GB", (s) => s.write(Buffer.alloc(64, 0xff))],
  ["nothing, and hangs up", (s) => s.destroy()],
] as [string, (socket: Socket, id: bigint) => void][])("%s", async (_, answer) => {
  const { store, server } = await connectTo(answer);
  try {
    await expect(store.get("key", { timeoutMs: 60_000 })).rejects.toMatchObject({
      code: "ERR_PEER",
    });
  } finally {
    await store.close().catch(() => {});
    server.close();
  }
});

test("an answer to another request is none", async () => {
  const { store, server } = await connectTo((socket, id) => {
    socket.write(frame(types.value, id + 7n, Buffer.from([1, 0, 0, 0, 66])));
    socket.write(frame(types.value, id, Buffer.from([1, 0, 0, 0, 65])));
  });
  expect([...(await store.get("key", { timeoutMs: 60_000 }))]).toEqual([65]);
  await store.close().catch(() => {});
  server.close();
});
