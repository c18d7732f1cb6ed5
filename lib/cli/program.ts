import { Command, CommanderError } from "commander";
import { exitCodes, LlamaForgeError, OutOfMemoryError, StorageError } from "../core/errors.js";
import { exitAtOnce } from "../core/exit.js";
import { nearest } from "../core/option-tree.js";
import { systemRefusal } from "../core/system-refusal.js";
import { addBench } from "./bench.js";
import { addChat } from "./chat.js";
import { addCompletion } from "./completion.js";
import { addDoctor } from "./doctor.js";
import { addEval } from "./eval.js";
import { addExport } from "./export.js";
import { addGenerate } from "./generate.js";
import { addInit } from "./init.js";
import { addLaunch } from "./launch.js";
import { addMerge } from "./merge.js";
import { beStrict } from "./options.js";
import { addPlan } from "./plan.js";
import { addPrepare } from "./prepare.js";
import { addPush } from "./push.js";
import { addQuickstart } from "./quickstart.js";
import { addReport } from "./report.js";
import { addServe } from "./serve.js";
import { bounded, printError } from "./terminal.js";
import { addTokenizer } from "./tokenizer.js";
import { addTrain } from "./train.js";
import { addVerify } from "./verify.js";
import { packageVersion } from "./version.js";

/** The command line as data: every command with its arguments and options. */
export function createProgram(): Command {
  const program = new Command("llamaforge")
    .description("Pretrain, judge and serve Llama-style language models.")
    .version(packageVersion, "-V, --version", "print the version")
    .configureHelp({ showGlobalOptions: false })
    .showHelpAfterError(false)
    .configureOutput({ writeErr: () => {} })
    .exitOverride();
  addQuickstart(program);
  addInit(program);
  addDoctor(program);
  addTokenizer(program);
  addPrepare(program);
  addPlan(program);
  addTrain(program);
  addLaunch(program);
  addGenerate(program);
  addEval(program);
  addChat(program);
  addServe(program);
  addExport(program);
  addMerge(program);
  addPush(program);
  addVerify(program);
  addReport(program);
  addBench(program);
  addCompletion(program);
  for (const command of commandTree(program)) {
    command.exitOverride((error) => {
      throw Object.assign(error, { command });
    });
    beStrict(command);
  }
  return program;
}

/** A command and all its subcommands. */
export function commandTree(command: Command): Command[] {
  return [command, ...command.commands.flatMap(commandTree)];
}

/** Full name of a command, such as `llamaforge bench parity`. */
export function commandName(command: Command): string {
  return command.parent ? `${commandName(command.parent)} ${command.name()}` : command.name();
}

/**
 * Runs a command line.
 * @param argv the arguments after the program's name
 * @returns the exit code; all messages for the user have been printed
 */
export async function runCli(argv: readonly string[]): Promise<number> {
  const program = createProgram();
  if (argv.length === 0) {
    printError(program.helpInformation());
    return exitCodes.usage;
  }
  try {
    refuseUnicodeDashes(program, argv);
    process.exitCode = exitCodes.done;
    await program.parseAsync([...argv], { from: "user" });
    return Number(process.exitCode);
  } catch (error) {
    if (error instanceof CommanderError) {
      if (error.exitCode === 0) return exitCodes.done;
      printError(bounded(explainUsage(error, program)));
      return exitCodes.usage;
    }
    const code = reportError(error);
    // Reads that still wait for the storage would keep the process alive.
    if (storageHangs(error)) exitAtOnce(code);
    return code;
  }
}

/** Prints an error that ends the program. @returns its exit code */
export function reportError(thrown: unknown): number {
  const error = thrown instanceof LlamaForgeError ? thrown : (systemRefusal(thrown) ?? thrown);
  const known = error instanceof LlamaForgeError;
  if (known && (error.exitCode !== exitCodes.bug || error instanceof OutOfMemoryError)) {
    printError(`llamaforge: ${bounded(error.message)}\n`);
    return error.exitCode;
  }
  // The system refused something that the user named, or has run out of a resource. That is not a
  // bug.
  if (isSystemError(error)) {
    printError(`llamaforge: ${bounded(error.message)}\n`);
    return exitCodes.usage;
  }
  const text = error instanceof Error ? (error.stack ?? error.message) : String(error);
  printError(
    `llamaforge: ${bounded(text)}\n\nThis is a bug in LlamaForge. Please open an issue with the lines above, ` +
      "the command line, and what `llamaforge doctor` prints.\n",
  );
  return exitCodes.bug;
}

/**
 * Whether reads from storage that does not answer are in progress. `process.exit` would wait for
 * them.
 */
export function storageHangs(error: unknown): boolean {
  for (let each = error; each instanceof Error; each = each.cause) {
    if (each instanceof StorageError) return true;
  }
  return false;
}

/**
 * Whether an error comes from a system call (Node then names the call), or from a path that no
 * system call accepts.
 */
function isSystemError(error: unknown): error is Error {
  if (!(error instanceof Error)) return false;
  const { syscall, code, message } = error as NodeJS.ErrnoException;
  if (typeof syscall === "string" && typeof code === "string") return true;
  return code === "ERR_INVALID_ARG_VALUE" && message.includes("null bytes");
}

/** Dashes that word processors turn hyphens into. */
const unicodeDash = /^[\u2010-\u2015\u2212\ufe58\ufe63\uff0d]+/;

/**
 * Refuses `–set` with a dash pasted from a document, which would otherwise be taken for a file
 * name.
 */
function refuseUnicodeDashes(program: Command, argv: readonly string[]): void {
  const named = (candidates: readonly Command[]): Command | undefined =>
    candidates.find((candidate) => argv.includes(candidate.name()));
  const outer = named(program.commands) ?? program;
  const command = (outer !== program && named(outer.commands)) || outer;
  const flags = [program, command].flatMap(({ options }) => options.flatMap(flagsOf));
  for (const argument of argv) {
    if (argument === "--") return;
    const dash = unicodeDash.exec(argument)?.[0];
    if (dash === undefined) continue;
    const name = argument.slice(dash.length).split("=")[0]!;
    const meant = nearest(
      name,
      flags.map((flag) => flag.replace(/^-+/, "")),
    );
    if (meant === undefined) continue;
    const point = dash.codePointAt(0)!.toString(16).toUpperCase().padStart(4, "0");
    command.error(
      `error: '${argument}' begins with the character U+${point}, not with a hyphen; did you mean '--${meant}'?`,
    );
  }
}

function flagsOf(option: Command["options"][number]): string[] {
  return [option.short, option.long].filter((flag) => flag !== undefined);
}

/** Explains a usage error: what is wrong, and how the option or the command is used. */
function explainUsage(error: CommanderError & { command?: Command }, program: Command): string {
  const command = error.command ?? program;
  const name = commandName(command);
  if (error.code === "commander.help") return command.helpInformation();
  const message = error.message.replace(/^error: /, "").replace(/\n\(Did you mean (.*)\?\)$/s, "");
  const lines = [`${name}: ${message}`];
  const mentioned = /'(-[^'\s=<]+)|\[?--[a-z-]+/i.exec(message);
  const flag = mentioned?.[1] ?? mentioned?.[0];
  const flags = command.options.flatMap(flagsOf);
  const known = flag && (flags.includes(flag) ? flag : nearest(flag, flags));
  const option = command.options.find((candidate) => known && flagsOf(candidate).includes(known));
  if (option !== undefined) lines.push(`  ${option.flags}  ${option.description}`);
  const unknownCommand = /^unknown command '(.*)'$/.exec(message)?.[1];
  const meant =
    unknownCommand &&
    nearest(
      unknownCommand,
      command.commands.map((c) => c.name()),
    );
  if (meant) lines.push(`  did you mean ${meant}?`);
  lines.push(`usage: ${name} ${command.usage()}`, `       ${name} --help  lists all options`);
  return `${lines.join("\n")}\n`;
}
