/**
 * Deliberate faults for tests: `FAULT=point:n:action` makes the n-th passing of a point fail. It is
 * honoured only with LLAMAFORGE_TEST_FAULTS=1, so that an unrelated variable of this name does
 * nothing.
 *
 *     points    init (output folder locked), weights and gradients (seen by the canary), loss (of a
 *               micro-batch), updated (weights of this process, after a step), step (done, before
 *               its save), save (before the snapshot), saving (handed to the writer)
 *     actions   kill, segv, abort, exit (with 1), throw, and actions of the point itself: flip, nan
 */
export type FaultPoint =
  | "init"
  | "weights"
  | "gradients"
  | "loss"
  | "updated"
  | "step"
  | "save"
  | "saving";
export type OwnAction = "flip" | "nan";

const plan =
  process.env.LLAMAFORGE_TEST_FAULTS === "1" ? parse(process.env.FAULT ?? "") : undefined;
let passed = 0;

function parse(text: string): { point: string; n: number; action: string } | undefined {
  const [point = "", n = "", action = ""] = text.split(":");
  return point === "" ? undefined : { point, n: Number(n), action };
}

/** Passes a point. @returns an action that the caller has to carry out; nearly always null */
export function faultPoint(point: FaultPoint): OwnAction | null {
  if (plan?.point !== point || ++passed !== plan.n) return null;
  switch (plan.action) {
    case "kill":
      return end("SIGKILL");
    case "segv":
      return end("SIGSEGV");
    case "abort":
      return process.abort();
    case "exit":
      return process.exit(1);
    case "flip":
    case "nan":
      return plan.action;
    default:
      throw new Error(`fault at ${point} ${plan.n}`);
  }
}

/** A signal that a process sends to itself has arrived when kill() returns. */
function end(signal: NodeJS.Signals): null {
  process.kill(process.pid, signal);
  return null;
}
