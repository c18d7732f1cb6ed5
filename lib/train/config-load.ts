import { readFileSync } from "node:fs";
import { LineCounter, parse, parseDocument } from "yaml";
import { checkArray, checkPath, checkString, jsonText } from "../check-values.js";
import { ConfigError, type ConfigProblem, UsageError } from "../errors.js";
import { checkConfig, type RunConfig, suggestKey } from "./config-resolve.js";
import { runSchema } from "./config-schema.js";
import { child, optionsOf, type Path, pathName, unwrap } from "./config-tree.js";

/**
 * Reads a YAML run configuration.
 * @param overrides `path=value` texts that win over the file, e.g. `optimizer.peakLr=1e-3`
 * @throws UsageError if the file cannot be read; ConfigError with all problems of file and overrides
 */
export function loadConfig(file: string, overrides: readonly string[] = []): RunConfig {
  checkPath("loadConfig", "file", file);
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(readFileSync(file));
  } catch (cause) {
    const reason = cause instanceof TypeError ? "it is not UTF-8 text" : (cause as Error).message;
    throw new UsageError(`cannot read the configuration ${file}: ${reason}`, { cause });
  }
  return parseConfig(text, file, overrides);
}

/** The same from YAML text; `source` is named in errors. */
export function parseConfig(
  text: string,
  source = "config",
  overrides: readonly string[] = [],
): RunConfig {
  const op = "parseConfig";
  checkString(op, "text", text);
  checkString(op, "source", source);
  checkArray(op, "overrides", overrides, "an array of path=value texts");
  for (const [index, override] of overrides.entries()) {
    checkString(op, `overrides[${index}]`, override);
  }
  const { root, lineOf } = parseYaml(text, source);
  const problems: ConfigProblem[] = [];
  const overridden = new Set<string>();
  for (const override of overrides) {
    const result = parseOverride(override);
    if ("problem" in result) {
      problems.push({ path: `--set ${override}`, message: result.problem });
    } else {
      setAt(root, result.path, result.value);
      overridden.add(pathName(result.path));
    }
  }
  const checked = checkConfig(root);
  const located = checked.problems.map(({ path, message }) => {
    const line = overridden.has(path) ? undefined : lineOf(path);
    const text = line === undefined ? message : `${message} (line ${line})`;
    return { line: line ?? Number.MAX_SAFE_INTEGER, problem: { path, message: text } };
  });
  located.sort((a, b) => a.line - b.line);
  problems.push(...located.map(({ problem }) => problem));
  if (checked.config === undefined || problems.length > 0) throw new ConfigError(source, problems);
  return checked.config;
}

type Tree = Record<string, unknown>;

function parseYaml(text: string, source: string) {
  const lineCounter = new LineCounter();
  const document = parseDocument(text, {
    lineCounter,
    uniqueKeys: true,
    prettyErrors: false,
    logLevel: "error",
  });
  const faults = [...document.errors, ...document.warnings];
  if (faults.length > 0) {
    throw new ConfigError(
      source,
      faults.map((fault) => {
        const { line, col } = lineCounter.linePos(fault.pos[0]);
        return { path: `line ${line}, column ${col}`, message: fault.message };
      }),
    );
  }
  let root: unknown;
  try {
    root = document.toJS() ?? {};
  } catch (cause) {
    throw new ConfigError(source, [{ path: "(all)", message: (cause as Error).message }]);
  }
  if (containsItself(root)) {
    throw new ConfigError(source, [
      {
        path: "(all)",
        message: "an alias stands within its own anchor: no value can contain itself",
      },
    ]);
  }
  if (typeof root !== "object" || Array.isArray(root)) {
    throw new ConfigError(source, [
      { path: "(all)", message: `expected "option: value" lines, got ${jsonText(root)}` },
    ]);
  }
  const lineOf = (path: string): number | undefined => {
    const node = document.getIn(splitPath(path), true) as
      | { range?: [number, number, number] }
      | undefined;
    return node?.range && lineCounter.linePos(node.range[0]).line;
  };
  return { root: root as Tree, lineOf };
}

/** Whether a value is its own part, as `&a [*a]` is. */
function containsItself(value: unknown, parents = new Set<object>(), seen = new Set<object>()) {
  if (typeof value !== "object" || value === null) return false;
  if (parents.has(value)) return true;
  if (seen.has(value)) return false;
  seen.add(value);
  parents.add(value);
  const found = Object.values(value).some((part): boolean => containsItself(part, parents, seen));
  parents.delete(value);
  return found;
}

/** `data.train.data/text` to its keys: what follows a mapping's name is one key, dots and all. */
function splitPath(path: string): string[] {
  const keys: string[] = [];
  let schema: Parameters<typeof child>[0] | undefined = runSchema;
  let rest = path;
  while (schema !== undefined && optionsOf(schema) !== undefined) {
    const dot = rest.indexOf(".");
    const key = dot < 0 ? rest : rest.slice(0, dot);
    keys.push(key);
    if (dot < 0) return keys;
    rest = rest.slice(dot + 1);
    schema = child(schema, key);
  }
  return [...keys, rest];
}

/** One `path=value`, typed by the schema. */
export function parseOverride(
  override: string,
): { path: Path; value: unknown } | { problem: string } {
  const equals = override.indexOf("=");
  if (equals < 1) return { problem: 'expected "path=value", e.g. optimizer.peakLr=1e-3' };
  // A data set's folder may hold "=", a weight cannot: the last one divides there.
  const inMapping = override.startsWith("data.train.");
  const divide = inMapping ? override.lastIndexOf("=") : equals;
  const path = splitPath(override.slice(0, divide));
  const value = override.slice(divide + 1);
  if (value === "") return { problem: "expected a value after =" };

  let schema: Parameters<typeof child>[0] = runSchema;
  for (const [i, key] of path.entries()) {
    const next = child(schema, key);
    if (next === undefined) {
      const unknown = pathName(path.slice(0, i + 1));
      return { problem: `unknown option ${unknown}${suggestKey(path.slice(0, i), key)}` };
    }
    schema = next;
  }
  if (optionsOf(schema) !== undefined) {
    const options = Object.keys(optionsOf(schema)!).map((key) => `${pathName(path)}.${key}`);
    return { problem: `is a section; set one of ${options.join(", ")}` };
  }
  return typedValue(schema, value);

  function typedValue(option: Parameters<typeof child>[0], written: string) {
    const kind = unwrap(option).def.type;
    if (kind === "string" || kind === "enum") return { path, value: written };
    try {
      return { path, value: parse(written) as unknown };
    } catch (error) {
      return { problem: (error as Error).message.split("\n")[0]! };
    }
  }
}

/** Sets a value, making the sections above it; what stands in the way stays, for the schema to reject. */
function setAt(root: Tree, path: Path, value: unknown): void {
  let section = root;
  for (const key of path.slice(0, -1)) {
    const next = section[key] ?? {};
    if (typeof next !== "object" || Array.isArray(next)) return;
    section[key] = next;
    section = next as Tree;
  }
  Object.defineProperty(section, path.at(-1)!, {
    value,
    enumerable: true,
    writable: true,
    configurable: true,
  });
}
