import { availableParallelism, cpus } from "node:os";

/** The processor's name as the operating system gives it. */
export function processorName(): string {
  return cpus()[0]?.model.trim().replace(/\s+/g, " ") || `${process.arch} CPU`;
}

/** Threads that this process may run at once. */
export function processorThreads(): number {
  return availableParallelism();
}
