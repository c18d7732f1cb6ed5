import { Tokenizer } from "../../data/tokenizer.js";
import { encodePieces } from "./encode.js";
import type { FromEncoder, ToEncoder } from "./encoder-pool.js";
import { sendError } from "./errors.js";

// Encodes what its parent sends, in order, and ends with it.

let tokenizer: Promise<Tokenizer> | null = null;
let dtype: "uint16" | "uint32" = "uint16";
let queue: Promise<unknown> = Promise.resolve();
/** A parent that was killed hears nothing any more. */
const answer = (message: FromEncoder): unknown =>
  process.send?.(message, undefined, undefined, (error: Error | null) => {
    if (error !== null) process.exit();
  });

process.on("disconnect", () => process.exit());
// A terminal sends these to the whole group, the last when it is closed; whether to stop is the parent's decision.
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) process.on(signal, () => {});

process.on("message", (message: ToEncoder) => {
  if (message.kind === "start") {
    tokenizer = Tokenizer.load(message.tokenizer);
    dtype = message.dtype;
    tokenizer.then(
      () => answer({ kind: "ready" }),
      (error) => answer({ kind: "failed", error: sendError(error) }),
    );
    return;
  }
  queue = queue.then(async () => {
    try {
      const loaded = await (tokenizer as Promise<Tokenizer>);
      answer({ kind: "encoded", batch: await encodePieces(message.request, loaded, dtype) });
      // The package's encodings are large, and V8 does not know how large.
      globalThis.gc?.();
    } catch (error) {
      answer({ kind: "failed", error: sendError(error) });
    }
  });
});
