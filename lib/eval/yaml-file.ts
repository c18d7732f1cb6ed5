import { basename, dirname, join, resolve } from "node:path";
import { ConfigError, DataError } from "../core/errors.js";
import { readSmallFile, readSmallFileSync } from "../files/small-file.js";
import { readYaml } from "../files/yaml.js";

/** The largest published task has some 20 KB. */
const maxBytes = 2 ** 22;

/** A Python function that a YAML file names with `!function`. */
export class NamedFunction {
  constructor(
    /** `utils.process_docs` */
    readonly name: string,
    /** Folder of the YAML file, which Python's modules are looked for in. */
    readonly folder: string,
  ) {}

  /** Source of the function's module, or null if there is none in the folder. */
  source(): string | null {
    const [module = ""] = this.name.split(/\.(?=[^.]*$)/);
    try {
      const file = join(this.folder, `${module.replaceAll(".", "/")}.py`);
      return readSmallFileSync(file, { limit: maxBytes }).toString("utf8");
    } catch {
      return null;
    }
  }
}

/** The settings of a task's YAML file. */
export type YamlSettings = Readonly<Record<string, unknown>>;

/**
 * Reads a task's YAML file in lm-evaluation-harness' format, with the files that it includes.
 * @throws DataError for a file that cannot be read, or includes itself
 * @throws ConfigError with all faults of a file
 */
export async function readTaskYaml(path: string): Promise<YamlSettings> {
  return read(resolve(path), []);
}

async function read(path: string, within: readonly string[]): Promise<YamlSettings> {
  if (within.includes(path)) {
    const circle = [...within, path].map((name) => basename(name)).join(", ");
    throw new DataError(`[evaluate] expected files that do not include each other, got ${circle}`);
  }
  const bytes = await readSmallFile(path, { limit: maxBytes }).catch((cause: Error) => {
    throw new DataError(`[evaluate] cannot read ${path}: ${cause.message}`, { cause });
  });
  const text = bytes.toString("utf8");
  const folder = dirname(path);
  const found = readYaml(text, {
    version: "1.1",
    customTags: [{ tag: "!function", resolve: (name) => new NamedFunction(name, folder) }],
  });
  const problem = (place: string, message: string) =>
    new ConfigError(path, [{ path: place, message }]);
  if ("faults" in found) {
    throw new ConfigError(
      path,
      found.faults.map(({ place, message }) => ({ path: place, message })),
    );
  }
  const { value } = found;
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw problem("(all)", "expected a task's settings by name");
  }
  const { include, ...own } = value as Record<string, unknown>;
  const files = include === undefined ? [] : Array.isArray(include) ? include : [include];
  let merged: YamlSettings = {};
  for (const file of files) {
    if (typeof file !== "string") throw problem("include", "expected the path of a file");
    merged = { ...merged, ...(await read(resolve(folder, file), [...within, path])) };
  }
  return { ...merged, ...own };
}
