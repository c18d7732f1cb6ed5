import { boundedList } from "./bounded-list.js";

/**
 * Base class of every error that a user can meet, with a stable `code`. The command line maps the
 * class to its exit code (`exitCode`); a library user switches on `code`.
 */
export class LlamaForgeError extends Error {
  /** Stable, machine-readable name of the fault, e.g. `ERR_SHAPE`. */
  readonly code: string;
  /** Exit code of the command line when this error ends it. */
  readonly exitCode: number;

  constructor(message: string, code: string, exitCode: number, options?: { cause?: unknown }) {
    // An error while formatting the message would hide the original one.
    super(
      typeof message === "string" ? message : `an error without text (${typeof message})`,
      options,
    );
    this.name = new.target.name;
    this.code = code;
    this.exitCode = exitCode;
  }
}

/** Exit codes of the command line. */
export const exitCodes = {
  done: 0,
  usage: 2,
  data: 3,
  checkpoint: 4,
  nonFinite: 5,
  peer: 6,
  bug: 70,
  stopped: 75,
} as const;

/** A wrong argument: type, range, number of arguments. */
export class ArgumentError extends LlamaForgeError {
  constructor(message: string, options?: { cause?: unknown }) {
    super(message, "ERR_ARGUMENT", exitCodes.usage, options);
  }
}

/** Shapes that do not fit an operation. */
export class ShapeError extends LlamaForgeError {
  constructor(message: string) {
    super(message, "ERR_SHAPE", exitCodes.bug);
  }
}

/** A dtype that an operation does not accept. */
export class DTypeError extends LlamaForgeError {
  constructor(message: string) {
    super(message, "ERR_DTYPE", exitCodes.bug);
  }
}

/** Tensors on different devices, an unknown device, or one that cannot be used here. */
export class DeviceError extends LlamaForgeError {
  constructor(message: string, options?: { cause?: unknown }) {
    super(message, "ERR_DEVICE", exitCodes.usage, options);
  }
}

/** Use of a tensor after its scope ended or `dispose()` was called. */
export class DisposedError extends LlamaForgeError {
  constructor(message: string) {
    super(message, "ERR_DISPOSED", exitCodes.bug);
  }
}

/** Misuse of automatic differentiation: no gradient to compute, or a graph that has already run. */
export class AutogradError extends LlamaForgeError {
  constructor(message: string) {
    super(message, "ERR_AUTOGRAD", exitCodes.bug);
  }
}

/** A native operation failed while running. The message starts with its name. */
export class NativeError extends LlamaForgeError {
  constructor(
    message: string,
    code = "ERR_NATIVE",
    exitCode: number = exitCodes.bug,
    options?: { cause?: unknown },
  ) {
    super(message, code, exitCode, options);
  }
}

/**
 * Non-finite numbers where a result needs finite ones, such as logits that give no probabilities.
 */
export class NonFiniteError extends NativeError {
  /**
   * Names in the weight files of the tensors that are not finite, where these have been searched
   * for.
   */
  readonly tensors: readonly string[];
  constructor(message: string, options?: { cause?: unknown; tensors?: readonly string[] }) {
    super(message, "ERR_NON_FINITE", exitCodes.nonFinite, options);
    this.tensors = options?.tensors ?? [];
  }
}

/** A device has no memory left for a tensor. */
export class OutOfMemoryError extends LlamaForgeError {
  constructor(message: string) {
    super(message, "ERR_OUT_OF_MEMORY", exitCodes.bug);
  }
}

/**
 * The system refuses a thread, a process or an open file, because of a limit of the user, the shell
 * or the container.
 */
export class ResourceError extends LlamaForgeError {
  constructor(message: string, options?: { cause?: unknown }) {
    super(message, "ERR_RESOURCE", exitCodes.usage, options);
  }
}

/** One finding in a configuration: where it is, what is wrong and what would be right. */
export interface ConfigProblem {
  /** Dotted path, e.g. `model.kvHeads`. */
  path: string;
  /** The fault, and the values that are allowed. */
  message: string;
}

/** A configuration with all its problems at once. */
export class ConfigError extends LlamaForgeError {
  readonly problems: readonly ConfigProblem[];
  constructor(source: string, problems: readonly ConfigProblem[]) {
    if (typeof source !== "string" || !Array.isArray(problems)) {
      throw new ArgumentError("[ConfigError] expected a string for source, an array for problems");
    }
    const list = boundedList(problems.map((problem) => `  ${problem?.path}: ${problem?.message}`));
    const count = problems.length === 1 ? "1 problem" : `${problems.length} problems`;
    super(`${source}: ${count}\n${list}`, "ERR_CONFIG", exitCodes.usage);
    this.problems = problems;
  }
}

/** A command line that cannot be parsed, or an output path that cannot be written to. */
export class UsageError extends LlamaForgeError {
  constructor(message: string, options?: { cause?: unknown }) {
    super(message, "ERR_USAGE", exitCodes.usage, options);
  }
}

/** Text, token shards or data sets that are missing, damaged or do not fit. */
export class DataError extends LlamaForgeError {
  constructor(message: string, options?: { cause?: unknown }) {
    super(message, "ERR_DATA", exitCodes.data, options);
  }
}

/** An intact split of a data set that holds no tokens, or too few for one window. */
export class NoTokensError extends DataError {}

/** Storage that does not answer: reads have not finished within the limit, and may never finish. */
export class StorageError extends LlamaForgeError {
  constructor(message: string) {
    super(message, "ERR_STORAGE", exitCodes.data);
  }
}

/** A tokenizer that is damaged or does not fit the data or the model. */
export class TokenizerError extends LlamaForgeError {
  constructor(message: string, options?: { cause?: unknown }) {
    super(message, "ERR_TOKENIZER", exitCodes.data, options);
  }
}

/** A checkpoint or weight file that is missing, damaged or does not fit. */
export class CheckpointError extends LlamaForgeError {
  constructor(message: string, options?: { cause?: unknown }) {
    super(message, "ERR_CHECKPOINT", exitCodes.checkpoint, options);
  }
}

/** Too many non-finite or spiking steps: the run cannot continue by itself. */
export class DivergedError extends LlamaForgeError {
  constructor(message: string) {
    super(message, "ERR_DIVERGED", exitCodes.nonFinite);
  }
}

/** An engine's queue is full. The same request may succeed later. */
export class QueueFullError extends LlamaForgeError {
  constructor(message: string) {
    super(message, "ERR_QUEUE_FULL", exitCodes.usage);
  }
}

/**
 * Another rank of the run died, hangs, left, or runs a different collective; or the ranks could not
 * find each other. The message names the rank and the collective where they are known.
 */
export class PeerError extends LlamaForgeError {
  constructor(message: string, options?: { cause?: unknown }) {
    super(message, "ERR_PEER", exitCodes.peer, options);
  }
}

/**
 * Hardware that computes or stores wrong bits. The message names the rank and the parameter groups.
 */
export class CorruptionError extends LlamaForgeError {
  constructor(message: string) {
    super(message, "ERR_CORRUPTION", exitCodes.peer);
  }
}
