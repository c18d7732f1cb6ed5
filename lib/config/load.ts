import { parse } from "yaml";
import { checkArray, checkString, jsonText } from "../core/check-values.js";
import { ConfigError, type ConfigProblem } from "../core/errors.js";
import { unwrap } from "../core/option-kinds.js";
import { pathName } from "../core/option-names.js";
import { suggestKey } from "../core/option-problems.js";
import { child, optionsOf, type Path } from "../core/option-tree.js";
import { readYaml } from "../files/yaml.js";
import { checkConfig, type LoadedConfig } from "./resolve.js";
import { runSchema } from "./schema.js";

/** Checks for an array of texts. @throws ArgumentError */
export function checkOverrides(op: string, overrides: readonly string[]): void {
  checkArray(op, "overrides", overrides, "an array of path=value texts");
  for (const [index, override] of overrides.entries()) {
    checkString(op, `overrides[${index}]`, override);
  }
}

/**
 * Parses a run's configuration from YAML text.
 * @param source name of the text in errors
 * @param overrides `path=value` texts that override it, such as `optimizer.peakLr=1e-3`
 * @throws ConfigError with all problems of text and overrides
 */
export function parseConfig(
  text: string,
  source = "config",
  overrides: readonly string[] = [],
): LoadedConfig {
  const op = "parseConfig";
  checkString(op, "text", text);
  checkString(op, "source", source);
  checkOverrides(op, overrides);
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
  const read = readYaml(text);
  if ("faults" in read) {
    const problems = read.faults.map(({ place, message }) => ({ path: place, message }));
    throw new ConfigError(source, problems);
  }
  const { value, document, lines } = read;
  const root = value ?? {};
  if (typeof root !== "object" || Array.isArray(root)) {
    const got = jsonText(root);
    throw new ConfigError(source, [
      { path: "(all)", message: `expected "option: value" lines, got ${got.slice(0, 80)}` },
    ]);
  }
  const lineOf = (path: string): number | undefined => {
    const node = document.getIn(splitPath(path), true) as
      | { range?: [number, number, number] }
      | undefined;
    return node?.range && lines.linePos(node.range[0]).line;
  };
  return { root: root as Tree, lineOf };
}

/**
 * Splits `data.train.data/text` into its keys. After the name of a mapping, the rest is one key,
 * dots included.
 */
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

/** Parses one `path=value`, typed by the schema. */
export function parseOverride(
  override: string,
): { path: Path; value: unknown } | { problem: string } {
  const equals = override.indexOf("=");
  if (equals < 1) return { problem: 'expected "path=value", e.g. optimizer.peakLr=1e-3' };
  // A data set's folder may contain "=", but a weight cannot, so the last "=" separates them.
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
      return {
        problem: `unknown option ${unknown}${suggestKey(runSchema, path.slice(0, i), key)}`,
      };
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

/**
 * Sets a value and creates the sections above it. A value in the place of a section stays, and the
 * schema rejects it.
 */
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
