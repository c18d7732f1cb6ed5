import { checkBoolean, checkString } from "../core/check-values.js";
import { ArgumentError } from "../core/errors.js";
import { Parameter } from "./parameter.js";

/**
 * Parameters that share a flat buffer, the unit of optimizer launches, all-reduce buckets and
 * shards.
 */
export interface ParameterGroupSpec {
  readonly name: string;
  readonly parameters: ReadonlyMap<string, Parameter>;
}

/**
 * Part of a model. Its own properties that are Parameters, Modules or arrays of Modules are its
 * parameters and children, in the order of assignment. Parameters in arrays, and anything in
 * #private fields, are not found and get no memory.
 */
export abstract class Module {
  /**
   * True while training. `eval()` sets it to false, for modules that behave differently (none of
   * this library's do).
   */
  training = true;

  /** Direct children by property name; elements of arrays as `name.index`. */
  namedChildren(): Map<string, Module> {
    const children = new Map<string, Module>();
    for (const [name, value] of Object.entries(this)) {
      if (value instanceof Module) children.set(name, value);
      else if (Array.isArray(value)) {
        value.forEach((item, index) => {
          if (item instanceof Module) children.set(`${name}.${index}`, item);
        });
      }
    }
    return children;
  }

  /**
   * All parameters by dotted name. A parameter used in two places (a tied head) appears once, under
   * its first name.
   */
  namedParameters(prefix = ""): Map<string, Parameter> {
    checkString("namedParameters", "prefix", prefix);
    const found = new Map<string, Parameter>();
    const seen = new Set<Parameter>();
    const visit = (module: Module, path: string): void => {
      for (const [name, value] of Object.entries(module)) {
        if (value instanceof Parameter && !seen.has(value)) {
          seen.add(value);
          found.set(path + name, value);
        }
      }
      for (const [name, child] of module.namedChildren()) visit(child, `${path}${name}.`);
    };
    visit(this, prefix);
    return found;
  }

  /** All parameters, in the order of their names' declaration. */
  parameters(): Parameter[] {
    return [...this.namedParameters().values()];
  }

  /** Number of scalars, trainable and frozen. */
  parameterCount(): number {
    return this.parameters().reduce((sum, parameter) => sum + parameter.size, 0);
  }

  /**
   * Groups of parameters that share a flat buffer: one for each child, and one for the module's own
   * parameters. A model overrides this to make groups of a good size for communication.
   */
  parameterGroups(): ParameterGroupSpec[] {
    const groups: ParameterGroupSpec[] = [];
    const seen = new Set<Parameter>();
    const add = (name: string, parameters: Iterable<[string, Parameter]>): void => {
      const fresh = new Map([...parameters].filter(([, parameter]) => !seen.has(parameter)));
      for (const parameter of fresh.values()) seen.add(parameter);
      if (fresh.size > 0) groups.push({ name, parameters: fresh });
    };
    const own = Object.entries(this).filter(([, value]) => value instanceof Parameter);
    add("own", own as [string, Parameter][]);
    for (const [name, child] of this.namedChildren()) add(name, child.namedParameters(`${name}.`));
    return groups;
  }

  /**
   * Excludes parameters from training: one by its name, or a part of the model by its path.
   * Default: all of them.
   */
  freeze(path = ""): this {
    return this.#setTrainable(path, false);
  }

  /** Takes parameters back into training; the counterpart of `freeze`. */
  unfreeze(path = ""): this {
    return this.#setTrainable(path, true);
  }

  #setTrainable(path: string, trainable: boolean): this {
    checkString("freeze", "path", path);
    const all = [...this.namedParameters()];
    const named = all.filter(
      ([name]) => path === "" || name === path || name.startsWith(`${path}.`),
    );
    if (named.length === 0) {
      const names = all.slice(0, 5).map(([name]) => name);
      throw new ArgumentError(
        `[freeze] no parameter is called or lies under ${JSON.stringify(path)}; names look like ${names.join(", ")}`,
      );
    }
    for (const [, parameter] of named) parameter.trainable = trainable;
    return this;
  }

  /** Sets the mode of this module and of all inside it. */
  train(training = true): this {
    checkBoolean("train", "training", training);
    this.training = training;
    for (const child of this.namedChildren().values()) child.train(training);
    return this;
  }

  /** Sets the mode to evaluation: `train(false)`. */
  eval(): this {
    return this.train(false);
  }
}
