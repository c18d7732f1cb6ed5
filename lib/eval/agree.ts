import { exitCodes, LlamaForgeError } from "../core/errors.js";
import { type EvalWorld, gatherTexts } from "./world.js";

/** Outcome of work on one rank, as the others are told it. */
interface Outcome {
  error?: { message: string; code: string; exitCode: number };
  value?: unknown;
}

function outcomeOf(error: unknown): Outcome {
  const { message } = error as Error;
  if (!(error instanceof LlamaForgeError)) {
    return { error: { message, code: "ERR_RANK", exitCode: exitCodes.bug } };
  }
  return { error: { message, code: error.code, exitCode: error.exitCode } };
}

async function exchange(world: EvalWorld, mine: Outcome): Promise<Outcome[]> {
  const texts = await gatherTexts(world, JSON.stringify(mine));
  return texts.map((text) => JSON.parse(text) as Outcome);
}

/** Errors that all ranks have thrown. */
const agreedErrors = new WeakSet<object>();

/** Whether all ranks have thrown an error, or the error of the same rank. */
export function isAgreed(error: unknown): boolean {
  return typeof error === "object" && error !== null && agreedErrors.has(error);
}

function remember(error: unknown): unknown {
  if (typeof error === "object" && error !== null) agreedErrors.add(error);
  return error;
}

/**
 * Work that either all ranks finish or none: an error of one rank is thrown on all of them. The work
 * itself does not communicate.
 */
export async function agreed<T>(world: EvalWorld | undefined, work: () => Promise<T>): Promise<T> {
  if (!world) return await work();
  let done: { value: T } | { failure: unknown };
  try {
    done = { value: await work() };
  } catch (failure) {
    done = { failure };
  }
  const outcomes = await exchange(world, "failure" in done ? outcomeOf(done.failure) : {});
  if ("failure" in done) throw remember(done.failure);
  const failed = outcomes.findIndex(({ error }) => error !== undefined);
  if (failed >= 0) throw remember(ofRank(failed, outcomes[failed] as Outcome));
  return done.value;
}

/** Work of the first rank alone, whose result all of them get. The result is plain JSON. */
export async function onFirst<T>(world: EvalWorld, work: () => Promise<T>): Promise<T> {
  let mine: Outcome = {};
  let failure: unknown;
  if (world.rank === 0) {
    try {
      mine = { value: await work() };
    } catch (error) {
      failure = error;
      mine = outcomeOf(error);
    }
  }
  const [first = {}] = await exchange(world, mine);
  if (failure !== undefined) throw remember(failure);
  if (first.error) throw remember(ofRank(0, first));
  return first.value as T;
}

function ofRank(rank: number, { error }: Outcome): LlamaForgeError {
  const { message, code, exitCode } = error as NonNullable<Outcome["error"]>;
  return new LlamaForgeError(`rank ${rank}: ${message}`, code, exitCode);
}
