import { setTimeout as wait } from "node:timers/promises";
import { UsageError } from "../core/errors.js";

/** A repository of the Hub. */
export interface HubRepo {
  type: "model" | "dataset";
  name: string;
}

/** Where the Hub is, and who asks. */
export interface HubAccess {
  hubUrl?: string;
  accessToken?: string;
  fetch: typeof fetch;
}

interface HubOptions extends HubAccess {
  repo: HubRepo;
  revision: string;
}

/** A file of a repository. */
export interface HubFile {
  type: string;
  path: string;
  size: number;
  /** Git's hash of the file, or of the pointer to a large one. */
  oid?: string;
  /** Of a large file, the SHA-256 of its bytes. */
  lfs?: { oid: string; size: number };
}

/** A change of a repository. */
export type HubOperation =
  | { operation: "addOrUpdate"; path: string; content: URL }
  | { operation: "delete"; path: string };

/** News of a commit under way. */
export interface HubCommitEvent {
  event: "phase" | "fileProgress";
  path?: string;
  progress?: number;
  state?: "hashing" | "uploading" | "error";
}

/** The part of `@huggingface/hub` that is used here. */
export interface HubPackage {
  listFiles(options: HubOptions & { recursive: boolean }): AsyncIterable<HubFile>;
  downloadFile(options: HubOptions & { path: string; xet?: boolean }): Promise<Blob | null>;
  modelInfo(
    options: HubAccess & { name: string; revision: string; additionalFields: ["sha"] },
  ): Promise<{ sha: string }>;
  createRepo(
    options: HubAccess & { repo: HubRepo; visibility: "private" | "public" },
  ): Promise<unknown>;
  commitIter(
    options: HubAccess & {
      repo: HubRepo;
      branch: string;
      title: string;
      operations: HubOperation[];
      abortSignal?: AbortSignal;
      useXet: boolean;
    },
  ): AsyncGenerator<HubCommitEvent, { commit: { oid: string; url: string } } | undefined>;
}

/**
 * Loads `@huggingface/hub`, which is optional.
 * @param what start of the message: the call that needs the package, such as `[downloadModel]`
 * @throws UsageError saying how to install it
 */
export async function importHub(what: string): Promise<HubPackage> {
  // A name that is not a literal keeps the compiler from looking for it.
  const name: string = "@huggingface/hub";
  try {
    return (await import(name)) as HubPackage;
  } catch (cause) {
    throw new UsageError(`${what} needs the package ${name}: install it with npm install ${name}`, {
      cause,
    });
  }
}

/**
 * The Hub and the token of the environment: HF_ENDPOINT and HF_TOKEN, as in the Hub's own tools.
 * @throws UsageError for a token that cannot be one, or if HF_HUB_OFFLINE forbids the network
 */
export function hubAccess(what: string, signal?: AbortSignal): HubAccess {
  const { HF_ENDPOINT, HF_TOKEN: accessToken, HF_HUB_OFFLINE } = process.env;
  if (/^(1|true|yes|on)$/i.test(HF_HUB_OFFLINE ?? "")) {
    throw new UsageError(`${what} HF_HUB_OFFLINE is set, which forbids to ask the Hub`);
  }
  if (accessToken && !accessToken.startsWith("hf_")) {
    throw new UsageError(`${what} HF_TOKEN: expected a token of the Hub, which begins with hf_`);
  }
  return {
    ...(HF_ENDPOINT && { hubUrl: HF_ENDPOINT.replace(/\/+$/, "") }),
    ...(accessToken && { accessToken }),
    fetch: (input, init) => fetchAgain(input, { ...init, ...(signal && { signal }) }),
  };
}

/** Requests that change nothing are sent again this often if their connection breaks. */
const mostAttempts = 3;

/** `fetch`, which also sends a request again whose connection breaks before the answer. */
async function fetchAgain(
  input: Parameters<typeof fetch>[0],
  init: RequestInit,
): Promise<Response> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await fetch(input, init);
    } catch (error) {
      const { code } = ((error as Error).cause ?? {}) as { code?: string };
      const broke = ["ECONNRESET", "EPIPE", "ETIMEDOUT", "UND_ERR_SOCKET"].includes(code ?? "");
      const repeats = (init.method ?? "GET") === "GET" && !init.signal?.aborted;
      if (!broke || !repeats || attempt === mostAttempts) throw error;
      await wait(200 * attempt);
    }
  }
}
