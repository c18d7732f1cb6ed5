import { Tokenizer } from "../../data/tokenizer.js";
import { encodePieces } from "./encode.js";
import type { FromEncoder, ToEncoder } from "./encoder-pool.js";
import { sendError } from "./errors.js";

// Encodes the batches that its parent sends, in order, and exits when the parent does.

let tokenizer: Promise<Tokenizer> | null = null;
let dtype: "uint16" | "uint32" = "uint16";
let queue: Promise<unknown> = Promise.resolve();
/** The answer may fail: a killed parent no longer listens. */
const answer = (message: FromEncoder): unknown =>
  process.send?.(message, undefined, undefined, (error: Error | null) => {
    if (error !== null) process.exit();
  });

process.on("disconnect", () => process.exit());
// A terminal sends these signals to the whole process group (SIGHUP when it closes). Only the
// parent decides whether to stop.
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
      // The package's encodings are large, but V8 does not know their size and would collect them
      // too late.
      globalThis.gc?.();
    } catch (error) {
      answer({ kind: "failed", error: sendError(error) });
    }
  });
});
