// What can be tested of the addon for ARM64 without running it: scripts/build-arm64.mjs has built
// it, scripts/test-arm64.mjs runs it.
import { execFileSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { root } from "../cli/build.js";

const folder = join(root, "build/arm64/Release");
const built = existsSync(join(folder, "llamaforge.node"));
const manifest = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));

test("npm installs the package on both processors, and the lock file says so too", () => {
  expect(manifest).toMatchObject({ os: ["linux"], cpu: ["x64", "arm64"], libc: ["glibc"] });
  const lock = JSON.parse(readFileSync(join(root, "package-lock.json"), "utf8"));
  expect(lock.packages[""].cpu).toEqual(manifest.cpu);
});

test("the workflows install the cross-compiler before they pack, and try the result on ARM64", () => {
  for (const name of ["ci.yml", "prebuild.yml"]) {
    const text = readFileSync(join(root, ".github/workflows", name), "utf8");
    const compiler = text.indexOf("g++-aarch64-linux-gnu");
    expect(compiler, name).toBeGreaterThan(0);
    expect(text.indexOf("npm run prebuild"), name).toBeGreaterThan(compiler);
    expect(text, name).toContain("ubuntu-24.04-arm");
  }
});

test("kernels use x86's or ARM's own instructions only where the compiler has them", () => {
  const sources = readdirSync(join(root, "csrc"), { recursive: true, encoding: "utf8" }).filter(
    (name) => /\.(cpp|h)$/.test(name) && !name.startsWith("cuda"),
  );
  expect(sources.length).toBeGreaterThan(100);
  for (const name of sources) {
    const guards: string[] = [];
    for (const line of readFileSync(join(root, "csrc", name), "utf8").split("\n")) {
      const [, directive, condition = ""] = /^#\s*(if\w*|elif|else|endif)\b(.*)/.exec(line) ?? [];
      if (directive?.startsWith("if")) guards.push(condition);
      else if (directive === "elif" || directive === "else") guards[guards.length - 1] = condition;
      else if (directive === "endif") guards.pop();
      const all = guards.join(" ");
      if (/\b_mm\d*_|immintrin|cpuid/.test(line) && !line.startsWith("//"))
        expect(all, `${name}: ${line}`).toMatch(/__x86_64__|__AVX|__FMA__/);
      if (/\bv\w+q?_(f32|u8|u16|u32|u64)\(|arm_neon/.test(line))
        expect(all, `${name}: ${line}`).toContain("__aarch64__");
    }
  }
});

describe.runIf(built)("the addon that was cross-compiled", () => {
  const dynamic = (name: string) =>
    execFileSync("readelf", ["--wide", "--dynamic", join(folder, name)], { encoding: "utf8" });
  const values = (text: string, tag: string) =>
    [...text.matchAll(new RegExp(`\\(${tag}\\).*\\[(.*)\\]`, "g"))].map(([, value]) => value);

  test.each(["llamaforge.node", "libllamaforge_gloo.so"])("%s is for ARM64", (name) => {
    expect(readFileSync(join(folder, name)).readUInt16LE(18)).toBe(183);
  });

  test("needs no oneDNN, and finds its libraries beside it and nowhere else", () => {
    const addon = dynamic("llamaforge.node");
    expect(values(addon, "NEEDED").sort()).toEqual([
      "libc.so.6",
      "libgcc_s.so.1",
      "libgomp.so.1",
      "libm.so.6",
      "libstdc++.so.6",
    ]);
    expect(values(addon, "RPATH")).toEqual(["$ORIGIN"]);
    expect(values(dynamic("libllamaforge_gloo.so"), "RUNPATH")).toEqual(["$ORIGIN"]);
  });

  test("loads with glibc 2.34", () => {
    const text = execFileSync(
      "readelf",
      ["--wide", "--version-info", join(folder, "llamaforge.node")],
      { encoding: "utf8" },
    );
    const minors = [...text.matchAll(/GLIBC_2\.(\d+)/g)].map(([, minor]) => Number(minor));
    expect(Math.max(...minors)).toBeLessThanOrEqual(34);
  });
});
