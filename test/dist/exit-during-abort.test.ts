/**
 * A program exits when it learns that a rank is lost, while the library of the collectives is still
 * aborting. The abort must end before the library is torn down. NCCL and CUDA would crash
 * otherwise, and the exit code would be lost.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { buildLibrary } from "../cli/build.js";
import { canCompileSources, compile, driverOfOurOwn } from "../support/cpp.js";
import { endRanks, startRanks } from "./comm-ranks.js";

const folder = mkdtempSync(join(tmpdir(), "llamaforge-abort-"));
let environment: Record<string, string>;

beforeAll(() => {
  buildLibrary();
  if (!canCompileSources) return;
  const plugin = join(folder, "plugin.so");
  compile(plugin, { sources: ["test/dist/slow_abort_plugin.cpp"] }, ["-shared", "-fPIC"]);
  environment = {
    LLAMAFORGE_CUDA_PLUGIN: plugin,
    LD_LIBRARY_PATH: driverOfOurOwn(folder, 13_000),
  };
}, 120_000);
afterAll(() => {
  endRanks();
  rmSync(folder, { recursive: true, force: true });
});

describe.runIf(canCompileSources)("a rank that ends itself when another is lost", () => {
  it.each([
    ["with what the error says", 6, undefined],
    ["with a code of its own", 3, 3],
  ])("%s: after the abort has ended", async (_, code, exitWith) => {
    const options = { device: "cuda:0", exitWith };
    const [survivor, victim] = await startRanks("leaving", 2, { options, environment });
    if (!survivor || !victim) throw new Error("expected two ranks");
    await Promise.all([survivor, victim].map((rank) => rank.says((said) => said === "ready")));
    victim.child.kill("SIGKILL");
    const ended = await survivor.ended;
    expect(ended).toMatchObject({ code, signal: null });
    expect(ended.stderr).not.toContain("was gone");
    expect(ended.stderr.match(/aborted\n/g)).toHaveLength(1);
  });
});
