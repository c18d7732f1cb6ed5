// Switches in the environment are 0 or 1. A device reads them when it opens, so each case has its
// own process.
import { spawnSync } from "node:child_process";
import { describe, expect, test } from "vitest";
import { root } from "../cli/build.js";

/** The outcome of the first tensor on the CPU. */
function firstTensor(environment: Record<string, string>): string {
  const program = `
    const addon = require("node-gyp-build")(${JSON.stringify(root)});
    try {
      new addon.NativeTensor(0, "f32", [2]);
      console.log("ok");
    } catch (error) {
      console.log(error.name, error.code, error.message);
    }`;
  const { stdout } = spawnSync(process.execPath, ["-e", program], {
    cwd: root,
    env: { ...process.env, ...environment },
    encoding: "utf8",
  });
  return stdout.trim();
}

describe("LLAMAFORGE_POISON", () => {
  test.each(["", "0", "1"])('"%s" is taken', (value) => {
    expect(firstTensor({ LLAMAFORGE_POISON: value })).toBe("ok");
  });

  test.each(["true", "on", "2", "01", " 1"])('"%s" is an error that says what is', (value) => {
    expect(firstTensor({ LLAMAFORGE_POISON: value })).toBe(
      `TypeError ERR_ARGUMENT LLAMAFORGE_POISON is "${value}": expected 0 or 1`,
    );
  });
});
