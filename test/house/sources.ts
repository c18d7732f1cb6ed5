/** The files of lib/, parsed: what they import and which types they name. */
import { readdirSync, readFileSync } from "node:fs";
import { dirname, join, normalize } from "node:path";
import ts from "typescript";
import { root } from "../cli/build.js";

/** Files of a folder of the repository by their paths from its root, sorted. */
export function filesUnder(folder: string, pattern: RegExp): string[] {
  return readdirSync(join(root, folder), { recursive: true, encoding: "utf8" })
    .filter((name) => pattern.test(name))
    .map((name) => join(folder, name))
    .sort();
}

export interface Source {
  /** Values that it imports: what the module loader loads before it. */
  readonly loads: readonly string[];
  /** Values that it imports when it runs: `import()`. */
  readonly later: readonly string[];
  /** Its types, interfaces, classes and enums; those of its functions are not among them. */
  readonly types: readonly { name: string; exported: boolean }[];
}

/** Modules by their specifiers; files of lib by their paths. */
export function parse(path: string, text = readFileSync(join(root, path), "utf8")): Source {
  const file = ts.createSourceFile(path, text, ts.ScriptTarget.Latest, true);
  const [loads, later, types] = [[], [], []] as [string[], string[], Source["types"][number][]];
  const target = (specifier: ts.Expression): string => {
    const name = (specifier as ts.StringLiteral).text;
    if (!name.startsWith(".")) return name;
    return normalize(join(dirname(path), name)).replace(/\.js$/, ".ts");
  };
  for (const statement of file.statements) {
    if (ts.isImportDeclaration(statement)) {
      if (importsValues(statement.importClause)) loads.push(target(statement.moduleSpecifier));
    } else if (ts.isExportDeclaration(statement) && statement.moduleSpecifier) {
      if (exportsValues(statement)) loads.push(target(statement.moduleSpecifier));
    } else if (
      ts.isInterfaceDeclaration(statement) ||
      ts.isClassDeclaration(statement) ||
      ts.isTypeAliasDeclaration(statement) ||
      ts.isEnumDeclaration(statement)
    ) {
      const exported = statement.modifiers?.some(
        ({ kind }) => kind === ts.SyntaxKind.ExportKeyword,
      );
      types.push({ name: statement.name?.text ?? "default", exported: exported ?? false });
    }
  }
  const visit = (node: ts.Node): void => {
    if (ts.isCallExpression(node) && node.expression.kind === ts.SyntaxKind.ImportKeyword) {
      const [specifier] = node.arguments;
      if (specifier && ts.isStringLiteral(specifier)) later.push(target(specifier));
    }
    ts.forEachChild(node, visit);
  };
  visit(file);
  return { loads, later, types };
}

function importsValues(clause: ts.ImportClause | undefined): boolean {
  if (!clause) return true;
  if (clause.phaseModifier === ts.SyntaxKind.TypeKeyword) return false;
  const { name, namedBindings } = clause;
  if (name || !namedBindings || ts.isNamespaceImport(namedBindings)) return true;
  return namedBindings.elements.some(({ isTypeOnly }) => !isTypeOnly);
}

function exportsValues({ isTypeOnly, exportClause }: ts.ExportDeclaration): boolean {
  if (isTypeOnly) return false;
  if (!exportClause || ts.isNamespaceExport(exportClause)) return true;
  return exportClause.elements.some((element) => !element.isTypeOnly);
}

/** Groups of nodes that reach each other, each sorted (Tarjan 1972). */
export function circles(graph: ReadonlyMap<string, readonly string[]>): string[][] {
  const found: string[][] = [];
  const places = new Map<string, number>();
  const lowest = new Map<string, number>();
  const open: string[] = [];
  const visit = (node: string): void => {
    places.set(node, places.size);
    lowest.set(node, places.get(node) as number);
    open.push(node);
    const lower = (to: number): void => {
      lowest.set(node, Math.min(lowest.get(node) as number, to));
    };
    for (const next of graph.get(node) ?? []) {
      if (!places.has(next)) {
        visit(next);
        lower(lowest.get(next) as number);
      } else if (open.includes(next)) {
        lower(places.get(next) as number);
      }
    }
    if (lowest.get(node) !== places.get(node)) return;
    const group = open.splice(open.indexOf(node));
    if (group.length > 1 || graph.get(node)?.includes(node)) found.push(group.sort());
  };
  for (const node of graph.keys()) if (!places.has(node)) visit(node);
  return found;
}

/** All that is reached from some nodes, themselves included. */
export function reached(
  graph: ReadonlyMap<string, readonly string[]>,
  ...from: readonly string[]
): Set<string> {
  const found = new Set(from);
  for (const node of found) for (const next of graph.get(node) ?? []) found.add(next);
  return found;
}
