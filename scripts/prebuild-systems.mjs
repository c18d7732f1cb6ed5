// The systems that packages are made for: where their builds are, and whose the libraries are that
// come along. linux-x64 is this machine, linux-arm64 is built by scripts/build-arm64.mjs.
import { execFileSync, spawnSync } from "node:child_process";
import { existsSync, readFileSync, realpathSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const arm64 = join(root, "build/arm64");
const arm64Root = join(arm64, "root");

/** Libraries that every Linux with Node has. */
const systemLibraries = /^(linux-vdso|ld-linux.*|lib(c|m|dl|rt|pthread|stdc\+\+|gcc_s))\.so/;

/**
 * By name, as Node names systems. `built`: the addon and its plugins; `cache`: the folder of
 * CMake's cache; `tools`: prefix of binutils; `needed`: libraries that a file loads, by name, directly or
 * indirectly; `licence`: name and path of the text for a file that comes along.
 */
export const systems = {
  "linux-x64": {
    arch: "x64",
    built: join(root, "build/Release"),
    cache: join(root, "build"),
    tools: "",
    needed: neededHere,
    licence: licenceHere,
  },
  "linux-arm64": {
    arch: "arm64",
    built: join(arm64, "Release"),
    cache: join(arm64, "cmake"),
    tools: "aarch64-linux-gnu-",
    needed: neededUnpacked,
    licence: licenceUnpacked,
  },
};

function neededHere(file) {
  const found = new Map();
  for (const line of execFileSync("ldd", [file], { encoding: "utf8" }).split("\n")) {
    const [, name, path] = /^\s*(\S+) => (.*?)(?: \(0x[0-9a-f]+\))?$/.exec(line) ?? [];
    if (name === undefined || systemLibraries.test(name)) continue;
    if (!path.startsWith("/")) throw new Error(`${file} needs ${name}, which is not installed`);
    found.set(name, realpathSync(path));
  }
  return found;
}

/** ldd would run the loader of the other system. */
function neededUnpacked(file, found = new Map()) {
  const text = execFileSync("aarch64-linux-gnu-readelf", ["-d", file], { encoding: "utf8" });
  for (const [, name] of text.matchAll(/\(NEEDED\)\s+Shared library: \[(.+)\]/g)) {
    if (systemLibraries.test(name) || found.has(name)) continue;
    const path = ["usr/lib/aarch64-linux-gnu", "lib/aarch64-linux-gnu", "usr/lib"]
      .map((folder) => join(arm64Root, folder, name))
      .find(existsSync);
    if (path === undefined)
      throw new Error(`${file} needs ${name}, which scripts/build-arm64.mjs does not download`);
    found.set(name, realpathSync(path));
    neededUnpacked(path, found);
  }
  return found;
}

function licenceHere(file) {
  // dpkg knows a file by either name where /lib is a link to /usr/lib.
  const owner = [file, `/usr${file}`, file.replace(/^\/usr/, "")]
    .map((candidate) => spawnSync("dpkg", ["-S", candidate], { encoding: "utf8" }))
    .find(({ status }) => status === 0);
  if (!owner) throw new Error(`no Debian package owns ${file}: whose licence is it under?`);
  const [name] = owner.stdout.split(":");
  return { name, path: `/usr/share/doc/${name}/copyright` };
}

function licenceUnpacked(file) {
  const owners = JSON.parse(readFileSync(join(arm64Root, "owners.json"), "utf8"));
  const name = owners[file.slice(arm64Root.length)];
  if (!name) throw new Error(`no Debian package owns ${file}: whose licence is it under?`);
  return { name, path: join(arm64Root, "usr/share/doc", name, "copyright") };
}
