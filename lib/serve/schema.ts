import type { z } from "zod";
import {
  integer,
  type OptionsSchema,
  positive,
  section,
  text,
  texts,
} from "../core/option-kinds.js";

// The only list of the options of a server. `serve` and the command line take names, ranges,
// defaults and help from it.

const day = 86_400;

const serverOptions = {
  /** Address to listen at. Others than loopback are reachable from outside. Default: "127.0.0.1". */
  host: text(/^[^\s/]+$/, "an address or the name of a host", "address to listen at", {
    value: "address",
  }).default("127.0.0.1"),
  /** Port to listen at; 0 takes a free one. Default: 8000. */
  port: integer(0, 65_535, "port to listen at; 0 takes a free one").default(8000),
  /** Name of the model in requests and answers. Default: "llamaforge". */
  modelName: text(/^\P{Cc}{1,200}$/u, "a name of up to 200 characters", "name of the model", {
    value: "name",
  }).default("llamaforge"),
  /** Keys, one of which a request must send as `Authorization: Bearer KEY`. Default: [], no key. */
  apiKeys: texts("a list of texts that are not empty", "key that requests must send", {
    value: "key",
  }).default([]),
  /** Origins of web pages that may read answers; "*" stands for all. Default: []. */
  corsOrigins: texts("a list of origins", "origin of web pages that may read answers", {
    value: "origin",
  }).default([]),
  /** Connections at once; further ones are closed. Default: 1024. */
  maxConnections: integer(1, 1_000_000, "connections at once; further ones are closed").default(
    1024,
  ),
  /** Size of a request's body. Default: 4194304. */
  maxBodyBytes: integer(1024, 2 ** 30, "bytes of a request's body").default(4 * 2 ** 20),
  /** Answers to one request, `n` for each prompt. Default: 128. */
  maxAnswers: integer(1, 4096, "answers to one request, n for each prompt").default(128),
  /** Time for a request's headers. Default: 10. */
  headerSeconds: positive(day, "seconds for a request's headers").default(10),
  /** Time for a whole request, its body included. Default: 60. */
  requestSeconds: positive(day, "seconds for a whole request to arrive").default(60),
  /** Time in which a reader takes 64 KiB. A slower one is cut off. Default: 30. */
  stallSeconds: positive(day, "seconds without reading after which a reader is cut off").default(
    30,
  ),
  /** Time for the answers that are being written when the server closes. Default: 30. */
  drainSeconds: positive(day, "seconds for answers to end when the server closes").default(30),
};

export const serverSchema: OptionsSchema<typeof serverOptions> = section(
  "how a server answers",
  serverOptions,
);

/** Options of `serve`. */
export interface ServerOptions extends z.input<typeof serverSchema> {}
