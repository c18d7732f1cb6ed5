// Calls functions of the library with wrong values: `child.mjs FOLDER BATCH NUMBER_OF_BATCHES`. It
// prints lines of JSON: each call before it is made, so that a hang or crash has a name, and each
// raw error.
import { AsyncResource } from "node:async_hooks";
import { writeSync } from "node:fs";
import { cpu, setDefaultDevice, setMemoryLimit, synchronize } from "../../../dist/index.js";
import { missing, targets } from "./targets.mjs";
import { few, hostile, isTyped, settled } from "./values.mjs";

/** A number that is too large is refused at once and not computed for minutes. */
const enough = 2 ** 26;
const [, , folder, batch, batches] = process.argv;
process.chdir(folder);
const say = (line) => writeSync(1, `${JSON.stringify(line)}\n`);
let current = "";
const fault = (how, error) => say({ call: current, how, error: String(error?.stack ?? error) });
process.on("unhandledRejection", (error) => {
  if (!isTyped(error)) fault("rejection that nobody handles", error);
});
process.on("uncaughtException", (error) => fault("uncaught", error));

/** The arguments with one of them replaced, or one property of an options object. */
function* variants(args, names) {
  for (let at = 0; at <= args.length; at++) {
    const keys = isOptions(args[at]) ? Object.keys(args[at]) : [];
    for (const name of names) {
      yield {
        what: `argument ${at + 1}: ${name}`,
        change: (all) => replaced(all, at, hostile[name]()),
      };
      // Each field gets a few values. All values would take minutes.
      for (const key of few.includes(name) ? keys : []) {
        const change = (all) => replaced(all, at, { ...all[at], [key]: hostile[name]() });
        yield { what: `argument ${at + 1}.${key}: ${name}`, change };
      }
    }
    if (isOptions(args[at])) {
      const change = (all) => replaced(all, at, { ...all[at], noSuchOption: 1 });
      yield { what: `argument ${at + 1} with an unknown option`, change };
    }
  }
  for (const name of few) {
    yield { what: `all arguments: ${name}`, change: (all) => all.map(() => hostile[name]()) };
  }
  yield { what: "no arguments", change: () => [] };
}

const isOptions = (value) =>
  typeof value === "object" && value !== null && Object.getPrototypeOf(value) === Object.prototype;
const replaced = (args, at, value) => Object.assign([...args], { [at]: value });

async function call(target, change) {
  const { of, args, after } = await target.make();
  try {
    // Each call has its own asynchronous context, because scope() without a function changes the
    // current one.
    const made = new AsyncResource("call").runInAsyncScope(() => of(...change(args)));
    const timeout = new Promise((_, reject) =>
      setTimeout(reject, 15_000, new Error("no end")).unref(),
    );
    await Promise.race([settled(made), timeout]);
  } catch (error) {
    if (!isTyped(error)) fault("raw error", error);
  }
  setMemoryLimit(enough, cpu);
  setDefaultDevice(cpu);
  // Enqueued work may fail now. The failure must not count for the next call.
  await synchronize(cpu).catch(
    (error) => isTyped(error) || fault("raw error of the device", error),
  );
  // The end of a failed call may fail too, but only with a typed error.
  await after?.().catch((error) => isTyped(error) || fault("raw error of the end", error));
}

setMemoryLimit(enough, cpu);
const absent = missing(folder);
if (absent.length > 0) throw new Error(`no arguments are known for ${absent}`);
for (const [index, target] of targets(folder).entries()) {
  if (index % Number(batches) !== Number(batch)) continue;
  const { args, after } = await target.make();
  await after?.();
  for (const { what, change } of variants(args, target.slow ? few : Object.keys(hostile))) {
    current = `${target.name}, ${what}`;
    say(current);
    await call(target, change);
  }
}
say("end");
process.exit(0);
