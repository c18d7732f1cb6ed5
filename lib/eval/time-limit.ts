import { createContext, Script } from "node:vm";
import { DataError } from "../core/errors.js";

/** Milliseconds that a pattern may take for one text. Published patterns take less than one. */
const limitMs = 1000;

const context = createContext({ work: null });
const call = new Script("work()");

/**
 * Calls a function that might never end: a pattern of a task's YAML file may take exponential time
 * for a text that the model wrote. No signal reaches the process meanwhile, not even Ctrl-C.
 * @throws DataError with `problem` if the time is up
 */
export function withinTime<T>(problem: string, work: () => T): T {
  context.work = work;
  try {
    return call.runInContext(context, { timeout: limitMs }) as T;
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code !== "ERR_SCRIPT_EXECUTION_TIMEOUT") throw cause;
    throw new DataError(`${problem}: it takes more than ${limitMs / 1000} s`, { cause });
  } finally {
    context.work = null;
  }
}
