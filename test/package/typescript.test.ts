// docs/install.md, "In TypeScript": the package's types in a project of each kind, checked as strictly
// as TypeScript can, the package's own declarations included.
import { spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { buildLibrary, root } from "../cli/build.js";

const folder = mkdtempSync(join(tmpdir(), "llamaforge-typescript-"));

/** The README's loop, and a mistake that must be one: declarations that resolve to `any` hide it. */
const program = `
import { AdamW, cosineSchedule, Llama, Mixture, presets, scope } from "llamaforge";

export async function train(): Promise<number> {
  const data = await Mixture.open({ "data/text": 1 }, { sequenceLength: 256 });
  const model = await Llama.create(presets.quickstart, { seed: 1 });
  const optimizer = new AdamW(model.store, { weightDecay: 0.1 });
  const lr = cosineSchedule({ peakLr: 2e-3, minLr: 2e-4, warmupSteps: 5, decaySteps: 100 });
  let last = 0;
  for (let step = 0; step < 3; step++) {
    using _ = scope();
    const loss = model.loss(await data.next(2));
    loss.backward();
    optimizer.step({ lr: lr(step), clip: 1 });
    last = await loss.item();
  }
  // @ts-expect-error the option is named seed
  await Llama.create(presets.quickstart, { sed: 1 });
  return last;
}
`;

beforeAll(() => {
  buildLibrary();
  const packages = join(folder, "node_modules");
  mkdirSync(packages);
  symlinkSync(root, join(packages, "llamaforge"));
  symlinkSync(join(root, "node_modules/@types"), join(packages, "@types"));
}, 300_000);

afterAll(() => rmSync(folder, { recursive: true, force: true }));

test.each([
  ["nodenext", "nodenext", "module"],
  ["nodenext", "nodenext", "commonjs"],
  ["node20", "node16", "module"],
  ["node20", "node16", "commonjs"],
  ["node16", "node16", "module"],
  ["esnext", "bundler", "module"],
  ["preserve", "bundler", "module"],
  ["commonjs", "bundler", "commonjs"],
  ["commonjs", "node10", "commonjs"],
])("module %s, moduleResolution %s, package type %s", (module, moduleResolution, type) => {
  const project = join(folder, `${module}-${moduleResolution}-${type}`);
  mkdirSync(project);
  const compilerOptions = {
    ...{ module, moduleResolution, strict: true, noEmit: true, skipLibCheck: false },
    ...{ target: "es2022", lib: ["es2022", "esnext.disposable"], types: ["node"] },
    ...(moduleResolution === "node10" && { ignoreDeprecations: "6.0" }),
  };
  writeFileSync(join(project, "package.json"), JSON.stringify({ type }));
  const settings = { compilerOptions, files: ["main.ts"] };
  writeFileSync(join(project, "tsconfig.json"), JSON.stringify(settings));
  writeFileSync(join(project, "main.ts"), program);
  const compiler = join(root, "node_modules/typescript/bin/tsc");
  const { stdout, status } = spawnSync(process.execPath, [compiler, "-p", project], {
    encoding: "utf8",
  });
  expect(stdout).toBe("");
  expect(status).toBe(0);
});
