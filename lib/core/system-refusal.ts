import { ResourceError } from "./errors.js";

const refusals: Readonly<Record<string, string>> = {
  EAGAIN:
    "a thread or a process: raise the limit on processes (ulimit -u, a container's pids limit)",
  EMFILE: "another open file: raise the limit on open files (ulimit -n)",
  ENFILE: "another open file: the whole system has too many (fs.file-max)",
  ENOMEM: "memory: free some, or raise the limit on it (ulimit -v, a container's memory limit)",
};

/**
 * Converts an error of Node.js by which the system refuses a process, a worker thread or a file;
 * null for any other error.
 */
export function systemRefusal(error: unknown): ResourceError | null {
  const { code, message } = (error ?? {}) as { code?: unknown; message?: unknown };
  // A worker thread's error has a code of its own, and names the system's code in its text.
  const named =
    code === "ERR_WORKER_INIT_FAILED" ? /E[A-Z]+$/.exec(String(message))?.[0] : String(code);
  const what = named === undefined ? undefined : refusals[named];
  if (what === undefined) return null;
  return new ResourceError(`the system refused ${what} (${String(message)})`, { cause: error });
}
