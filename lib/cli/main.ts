#!/usr/bin/env node
import { codeOfSignal, exitAtOnce } from "../core/exit.js";
import { nameOptionsAsFlags } from "../core/option-names.js";
import { reportError, runCli, storageHangs } from "./program.js";
import { tolerateClosedOutput } from "./signals.js";

/** Ends the process after an error. Hung storage must not keep it alive. */
function endWith(error: unknown): void {
  const code = reportError(error);
  if (storageHangs(error)) exitAtOnce(code);
  process.exit(code);
}

tolerateClosedOutput();
nameOptionsAsFlags();
process.on("uncaughtException", endWith);
process.on("unhandledRejection", endWith);
if (process.pid === 1) {
  // The first process of a container receives no signal without a handler, so without these nothing
  // would end a start-up.
  for (const signal of ["SIGINT", "SIGTERM"] as const) {
    process.on(signal, () => {
      if (process.listenerCount(signal) === 1) exitAtOnce(codeOfSignal(signal));
    });
  }
}
process.exitCode = await runCli(process.argv.slice(2));
