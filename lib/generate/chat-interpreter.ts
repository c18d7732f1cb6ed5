import { Interpreter as PackageInterpreter } from "@huggingface/jinja";

// The package's declarations do not resolve under Node's own module rules, so the parts in use are
// declared here.

/** A value of a running template. */
interface Value {
  type: string;
  value: unknown;
  __bool__(): Value;
}

/** A piece of a parsed template. */
interface Node {
  type: string;
}

/** The variables and tests of a running template. */
interface Environment {
  tests: ReadonlyMap<string, (...values: Value[]) => boolean>;
}

interface JinjaInterpreter {
  run(program: unknown): Value;
  evaluate(node: Node | undefined, environment: Environment): Value;
}

const Interpreter = PackageInterpreter as unknown as new (environment: unknown) => JinjaInterpreter;

interface OperatorNode extends Node {
  operator: { value: string };
  left: Node;
  right: Node;
}

interface FilterNode extends Node {
  operand: Node;
  filter: { type: string; callee?: { value?: string }; args?: readonly Node[] };
}

/**
 * Evaluates templates as Python's Jinja does where the package follows JavaScript: `==` compares
 * types and contents (`"" == false` is false, equal lists are equal), booleans are written as `True`
 * and `False`, and `selectattr` and `rejectattr` test an attribute that is missing as undefined.
 */
export class ChatInterpreter extends Interpreter {
  override evaluate(node: Node | undefined, environment: Environment): Value {
    if (node?.type === "BinaryExpression") {
      const { operator, left, right } = node as OperatorNode;
      const negated = operator.value === "!=";
      if (negated || operator.value === "==") {
        const first = this.evaluate(left, environment);
        const equal = same(first, this.evaluate(right, environment));
        return truth(first, equal !== negated);
      }
    }
    if (node?.type === "FilterExpression") {
      const { operand, filter } = node as FilterNode;
      const name = filter.type === "CallExpression" ? filter.callee?.value : undefined;
      if (name === "selectattr" || name === "rejectattr") {
        const args = (filter.args ?? []).map((arg) => this.evaluate(arg, environment));
        return this.#attributes(
          this.evaluate(operand, environment),
          args,
          name === "selectattr",
          environment,
        );
      }
    }
    const value = super.evaluate(node, environment);
    return value.type === "BooleanValue" ? truth(value, value.value === true) : value;
  }

  /** The items of a list whose attribute passes a test, or does not. */
  #attributes(
    list: Value,
    [attribute, test, ...rest]: readonly Value[],
    select: boolean,
    environment: Environment,
  ): Value {
    if (list.type !== "ArrayValue" && list.type !== "TupleValue") {
      throw new Error(`selectattr and rejectattr need a list, got ${list.type}`);
    }
    const passes = test && environment.tests.get(String(test.value));
    if (test && !passes) throw new Error(`Unknown test: ${String(test.value)}`);
    const kept = (list.value as Value[]).filter((item) => {
      const found = item.value instanceof Map && item.value.get(String(attribute?.value));
      const value = (found || this.evaluate(undefined, environment)) as Value;
      const name = String(test?.value);
      const passed =
        name === "equalto" || name === "eq"
          ? same(value, rest[0] ?? value)
          : passes
            ? passes(value, ...rest)
            : Boolean(value.__bool__().value);
      return passed === select;
    });
    return new (list.constructor as new (items: Value[]) => Value)(kept);
  }
}

/** A boolean, which is written as in Python. */
function truth(any: Value, value: boolean): Value {
  const made = new (any.__bool__().constructor as new (value: boolean) => Value)(value);
  return Object.assign(made, { toString: () => (value ? "True" : "False") });
}

const numeric = new Set(["IntegerValue", "FloatValue", "BooleanValue"]);

/** Equality as in Python: of types and of contents. */
function same(left: Value, right: Value): boolean {
  const [a, b] = [left.value as unknown, right.value as unknown];
  if (numeric.has(left.type) && numeric.has(right.type)) return Number(a) === Number(b);
  if (left.type !== right.type) return false;
  if (left.type === "NullValue" || left.type === "UndefinedValue") return true;
  if (Array.isArray(a) && Array.isArray(b)) {
    return a.length === b.length && a.every((item, index) => same(item, b[index]));
  }
  if (a instanceof Map && b instanceof Map) {
    return a.size === b.size && [...a].every(([key, item]) => b.has(key) && same(item, b.get(key)));
  }
  return a === b;
}
