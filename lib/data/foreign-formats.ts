import { DataError } from "../core/errors.js";
import type { TokenDType } from "./dataset-file.js";

/** Facts from a token file's header. */
export interface ForeignHeader {
  dtype: TokenDType;
  headerBytes: number;
  /** Number of tokens in the file according to its header; null if the header does not say. */
  tokens: number | null;
  /** The number of tokens must be a multiple of this. */
  multipleOf: number;
}

export interface ForeignFormat {
  headerBytes: number;
  /** Token around documents, if the description does not say. */
  documentStart: "none" | "bos" | "eos";
  documentEnd: "none" | "eos";
  /** @throws DataError naming the file and what is wrong with its header */
  parse(header: Buffer, path: string): ForeignHeader;
}

const litgptDtypes = [
  "",
  "uint8",
  "int8",
  "int16",
  "int32",
  "int64",
  "float32",
  "float64",
  "uint16",
];

function fail(path: string, problem: string): never {
  throw new DataError(`[data] ${path}: ${problem}`);
}

function need(header: Buffer, bytes: number, path: string): void {
  if (header.length < bytes) {
    fail(path, `${header.length} bytes are too few for the header of ${bytes}`);
  }
}

/** Formats of other trainers' token files. To add one, add a parser of its header. */
export const foreignFormats = {
  /** TinyLlama, Lit-GPT, Lit-LLaMA: "LITPKDS", version, dtype, chunk size; then one chunk or several. */
  litgpt: {
    headerBytes: 24,
    documentStart: "none",
    documentEnd: "eos",
    parse(header, path) {
      need(header, 24, path);
      const magic = header.toString("latin1", 0, 7);
      if (magic !== "LITPKDS") fail(path, `expected a file that begins with LITPKDS`);
      const version = header.readBigUInt64LE(7);
      if (version !== 1n) fail(path, `expected version 1 of the format, got ${version}`);
      const code = header[15] as number;
      const name = litgptDtypes[code] || `code ${code}`;
      if (name !== "uint16" && name !== "int32") {
        fail(path, `expected tokens of type uint16 or int32, got ${name}`);
      }
      const chunk = header.readBigUInt64LE(16);
      if (chunk < 1n || chunk > 2n ** 40n) fail(path, `a chunk of ${chunk} tokens`);
      const dtype = name === "uint16" ? "uint16" : "uint32";
      return { dtype, headerBytes: 24, tokens: null, multipleOf: Number(chunk) };
    },
  },
  /** nanoGPT: uint16 ids without a header. */
  nanogpt: {
    headerBytes: 0,
    documentStart: "none",
    documentEnd: "eos",
    parse: () => ({ dtype: "uint16", headerBytes: 0, tokens: null, multipleOf: 1 }),
  },
  /**
   * llm.c: a header of 256 int32, of which magic, version and number of tokens are used; then
   * uint16 ids (GPT-2) or uint32 ids (Llama 3).
   */
  llmc: {
    headerBytes: 1024,
    documentStart: "eos",
    documentEnd: "none",
    parse(header, path) {
      need(header, 1024, path);
      const [magic, version, tokens] = [0, 4, 8].map((at) => header.readInt32LE(at));
      const known = new Map<number, [version: number, dtype: TokenDType]>([
        [20240520, [1, "uint16"]],
        [20240801, [7, "uint32"]],
      ]).get(magic as number);
      if (known === undefined) {
        return fail(path, `expected the magic number 20240520 or 20240801, got ${magic}`);
      }
      const [expected, dtype] = known;
      if (version !== expected) fail(path, `expected version ${expected}, got ${version}`);
      return { dtype, headerBytes: 1024, tokens: (tokens as number) >>> 0, multipleOf: 1 };
    },
  },
} as const satisfies Record<string, ForeignFormat>;
