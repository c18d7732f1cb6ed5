// What the import and `doctor` say where no addon loads. test/package/install.test.ts damages a real
// installation.
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, it } from "vitest";
import { explainLoadFailure, probeAddon } from "../../lib/core/native-load.js";

const installed = mkdtempSync(join(tmpdir(), "llamaforge-load-"));
const cloned = join(installed, "clone");
afterAll(() => rmSync(installed, { recursive: true, force: true }));
mkdirSync(join(installed, "prebuilds"));
mkdirSync(cloned);
writeFileSync(join(cloned, "CMakeLists.txt"), "");

const on = (platform: string, arch: string, root = installed) =>
  explainLoadFailure(root, "no native build was found", { platform, arch, glibc: undefined });

it.each(["installed", "cloned"])("on a Mac, the %s library names a container", (how) => {
  const text = on("darwin", "arm64", how === "cloned" ? cloned : installed);
  expect(text).toContain("runs on Linux with glibc, on x86-64 and ARM64");
  expect(text).toContain("this Node.js is for darwin-arm64");
  expect(text).toContain('docker run -it -v "$PWD":/work -w /work node:22-bookworm bash');
  expect(text).not.toContain("npm run setup");
});

it("on Windows, it names WSL 2", () => {
  const text = on("win32", "x64");
  expect(text).toContain("this Node.js is for win32-x64");
  expect(text).toContain("wsl --install");
});

it("on another processor or system, it says which there are", () => {
  for (const [platform, arch] of [
    ["linux", "riscv64"],
    ["freebsd", "x64"],
  ] as const)
    expect(on(platform, arch)).toContain("runs on Linux with glibc, on x86-64 and ARM64");
});

it.each(["x64", "arm64"])("on Linux %s without an addon, it says how to get one", (arch) => {
  expect(on("linux", arch)).toContain(`has none for linux-${arch}, only for no system at all`);
  expect(on("linux", arch)).toContain("npm run setup");
  expect(on("linux", arch, cloned)).toContain("Build it: npm run setup");
});

it("doctor's probe says the same without a child process", async () => {
  const system = { platform: "darwin", arch: "arm64", glibc: undefined };
  expect(await probeAddon(installed, system)).toContain("in a Linux container");
});
