// Makes the published packages, as tarballs in build/packages:
//
//   npm run prebuild [-- --majors 12,13] [--archs "80;90a"] [--no-build] [--cpu-only]
//                       [--only library|plugins] [--systems linux-x64] [--out DIR]
//
// llamaforge-<version>.tgz is the library. It holds the addon for the CPU in prebuilds/linux-x64
// and prebuilds/linux-arm64, with oneDNN (x64) and every other library that a bare system lacks next
// to it. scripts/build-arm64.mjs compiles the second.
// llamaforge-linux-x64-cuda<MAJOR>-<version>.tgz is a CUDA plugin (@llamaforge/linux-x64-cuda12 and
// -cuda13), an optional dependency of the library in exactly its version. None of them runs a script
// when it is installed.
//
// --majors: the CUDA majors, by default those of packages/. --archs: architectures of the plugins,
// all by default. --no-build: packs the existing build. --cpu-only: leaves out the plugins.
// --systems: the systems of the addon, both by default. npm installs the package on those alone.
import { execFileSync, spawnSync } from "node:child_process";
import {
  copyFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { basename, dirname, join, relative, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { cached, discardForeign } from "./cmake-folder.mjs";
import { useOlderSymbols } from "./older-symbols.mjs";
import { copyDemo } from "./prebuild-demo.mjs";
import { systems } from "./prebuild-systems.mjs";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const { values: options } = parseArgs({
  options: {
    majors: { type: "string" },
    archs: { type: "string", default: "all" },
    "no-build": { type: "boolean", default: false },
    "cpu-only": { type: "boolean", default: false },
    only: { type: "string" },
    systems: { type: "string", default: Object.keys(systems).join() },
    out: { type: "string", default: join(root, "build/packages") },
  },
});
const out = resolve(options.out);
const manifest = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));
const offered = readdirSync(join(root, "packages")).map((name) => name.split("-cuda").at(-1));
const majors = options["cpu-only"] ? [] : (options.majors?.split(",") ?? offered);
for (const major of majors)
  if (!offered.includes(major)) fail(`--majors ${major}: packages/ has ${offered.join(", ")}`);
if (![undefined, "library", "plugins"].includes(options.only))
  fail(`--only ${options.only}: expected library or plugins`);
const chosen = options.systems.split(",");
for (const name of chosen)
  if (!(name in systems))
    fail(`--systems ${name}: expected ${Object.keys(systems).join(", ")} or both`);
const withLibrary = options.only !== "plugins";
const withPlugins = options.only !== "library";
const plugins = majors.map((major) => `linux-x64-cuda${major}`);

function fail(message) {
  console.error(`prebuild: ${message}`);
  process.exit(1);
}

function run(command, args, cwd = root) {
  const { status, error } = spawnSync(command, args, { cwd, stdio: "inherit" });
  if (status !== 0) fail(`${command} ${args.join(" ")} failed${error ? `: ${error.message}` : ""}`);
}

function build() {
  if (withLibrary) buildLibrary();
  if (!withPlugins) return;
  for (const major of majors) {
    const args = ["scripts/build-cuda.mjs", "--major", major, "--archs", options.archs];
    run(process.execPath, args);
  }
}

function buildLibrary() {
  const tool = (name) => join(root, "node_modules/.bin", name);
  discardForeign(join(root, "build"), root);
  if (chosen.includes("linux-x64")) {
    run(tool("cmake-js"), ["configure", "--CDLLAMAFORGE_CPU_SETS:STRING=all"]);
    run(tool("cmake-js"), ["build"]);
  }
  if (chosen.includes("linux-arm64")) run(process.execPath, ["scripts/build-arm64.mjs"]);
  run(process.execPath, ["scripts/generate-ops.mjs"]);
  run(tool("tsc"), ["-p", "tsconfig.build.json"]);
}

function checkBuilt() {
  for (const name of chosen) {
    const { built, cache } = systems[name];
    if (
      cached(cache, "CMAKE_HOME_DIRECTORY") === undefined ||
      !existsSync(join(built, "llamaforge.node"))
    )
      fail(
        `the addon for ${name} is not built: run without --no-build, or leave it out (--systems)`,
      );
    if (cached(cache, "LLAMAFORGE_CPU_SETS") !== "all")
      fail("the addon was built for this machine's CPU alone: run without --no-build");
  }
  if (!existsSync(join(root, "dist/cli/main.js"))) fail("dist/ is missing: run npm run build:ts");
}

/** Copies dist/ without files whose sources are gone. */
function copyLibrary(folder) {
  const built = join(root, "dist");
  cpSync(built, join(folder, "dist"), {
    recursive: true,
    filter: (path) => {
      if (statSync(path).isDirectory()) return true;
      const source = relative(built, path).replace(/(\.d\.ts|\.js)(\.map)?$/, ".ts");
      // Source maps point to sources that are not in the package.
      return !path.endsWith(".map") && existsSync(join(root, "lib", source));
    },
  });
}

/**
 * The newest version of a symbol that any of the files needs. The system must have at least this
 * version.
 */
function newestSymbol(files, prefix, tools) {
  const versions = files.flatMap((file) => {
    const text = execFileSync(`${tools}objdump`, ["-T", file], {
      encoding: "utf8",
      maxBuffer: 2 ** 28,
    });
    return [...text.matchAll(new RegExp(`\\b${prefix}_(\\d+(?:\\.\\d+)+)`, "g"))].map(([, v]) => v);
  });
  const key = (version) =>
    version
      .split(".")
      .map((part) => part.padStart(4, "0"))
      .join(".");
  return versions.sort((a, b) => (key(a) < key(b) ? -1 : 1)).at(-1);
}

/**
 * Licences of the libraries that come along, from the Debian packages that they are from.
 * @param files where those libraries were on this machine
 */
function copyLicences(folder, files, licence) {
  const target = join(folder, "licences");
  mkdirSync(target, { recursive: true });
  for (const { name, path } of files.map(licence)) copyFileSync(path, join(target, `${name}.txt`));
}

/**
 * Makes an empty folder for a package's contents, next to its tarball. It is removed once the
 * tarball exists.
 */
function stage(name) {
  return mkdtempSync(join(out, `${name}-`));
}

function packMain() {
  const folder = stage("llamaforge");
  const { devDependencies: _, overrides: __, scripts: ___, files, ...rest } = manifest;
  const published = {
    ...rest,
    cpu: chosen.map((name) => systems[name].arch),
    files,
    optionalDependencies: Object.fromEntries(
      plugins.map((name) => [`@llamaforge/${name}`, manifest.version]),
    ),
  };
  writeFileSync(join(folder, "package.json"), `${JSON.stringify(published, null, 2)}\n`);
  for (const name of ["README.md", "LICENSE"]) copyFileSync(join(root, name), join(folder, name));
  for (const part of files.filter(
    (part) => existsSync(join(root, part)) && !/^(dist|prebuilds)/.test(part),
  )) {
    // The API reference is generated into docs/.
    const filter = (path) => path !== join(root, "docs/api");
    cpSync(join(root, part), join(folder, part), { recursive: true, filter });
  }
  copyLibrary(folder);
  copyDemo(root, join(folder, "assets/quickstart/demo"));
  for (const name of chosen) addAddon(folder, name);
  pack(folder);
}

/** Puts the addon of a system into a package's folder, with the libraries that it brings along. */
function addAddon(folder, name) {
  const { arch, cache, tools, licence } = systems[name];
  run(
    join(root, "node_modules/.bin/prebuildify"),
    [
      ...["--napi", "--name", "llamaforge", "--platform", "linux", "--arch", arch],
      ...["--strip", "--strip-bin", `${tools}strip`],
      ...["--artifacts", join(folder, "build/artifacts")],
      ...["--node-gyp", join(root, "scripts/prebuild-node-gyp.mjs")],
    ],
    folder,
  );
  const origins = JSON.parse(readFileSync(join(folder, "build/origins.json"), "utf8"));
  rmSync(join(folder, "build"), { recursive: true });
  const native = join(folder, "prebuilds", name);
  // Headers alone, so that the addon holds its code.
  const json = join(cached(cache, "NLOHMANN_JSON_INCLUDE_DIR"), "nlohmann/json.hpp");
  copyLicences(native, [...Object.values(origins), json], licence);
  const binaries = readdirSync(native).filter((file) => /\.(node|so)(\.|$)/.test(file));
  const paths = binaries.map((file) => join(native, file));
  paths.forEach(useOlderSymbols);
  const needs = {
    glibc: newestSymbol(paths, "GLIBC", tools),
    libstdcxx: newestSymbol(paths, "GLIBCXX", tools),
    libraries: binaries.filter((file) => file !== "llamaforge.node"),
  };
  writeFileSync(join(native, "needs.json"), `${JSON.stringify(needs, null, 2)}\n`);
  console.log(
    `prebuild: ${name} needs glibc ${needs.glibc}, libstdc++ with GLIBCXX_${needs.libstdcxx}`,
  );
}

function packPlugin(name) {
  const library = `libllamaforge_${name.split("-").at(-1)}.so`;
  const built = join(root, "build/Release", library);
  if (!existsSync(built))
    fail(`${library} is not built: npm run build:cuda -- --major N, or --cpu-only`);
  const folder = stage(name);
  const own = JSON.parse(readFileSync(join(root, "packages", name, "package.json"), "utf8"));
  const versioned = { ...own, version: manifest.version };
  writeFileSync(join(folder, "package.json"), `${JSON.stringify(versioned, null, 2)}\n`);
  copyFileSync(join(root, "packages", name, "README.md"), join(folder, "README.md"));
  copyFileSync(join(root, "LICENSE"), join(folder, "LICENSE"));
  copyFileSync(built, join(folder, library));
  run("strip", ["--strip-all", join(folder, library)]);
  useOlderSymbols(join(folder, library));
  pack(folder);
}

function pack(folder) {
  const args = ["pack", "--json", "--ignore-scripts", "--pack-destination", out];
  const text = execFileSync("npm", args, {
    cwd: folder,
    encoding: "utf8",
    stdio: ["ignore", "pipe", "inherit"],
  });
  const [{ filename, size, unpackedSize, entryCount }] = JSON.parse(text);
  const mebibytes = (bytes) => `${(bytes / 2 ** 20).toFixed(1)} MiB`;
  console.log(
    `prebuild: ${basename(filename)} ${mebibytes(size)}, installed ${mebibytes(unpackedSize)}, ${entryCount} files`,
  );
  rmSync(folder, { recursive: true });
}

if (process.platform !== "linux" || process.arch !== "x64")
  fail(`packages are made on Linux x64, not on ${process.platform} ${process.arch}`);
if (!options["no-build"]) build();
else if (withLibrary) checkBuilt();
mkdirSync(out, { recursive: true });
for (const name of readdirSync(out)) {
  // Removes the output of earlier runs, failed ones included. The folder may hold other things.
  const ours = /^llamaforge-.*\.tgz$|^(llamaforge|linux-x64-cuda\d+)-\w{6}$/.test(name);
  if (ours) rmSync(join(out, name), { recursive: true });
}
if (withLibrary) packMain();
if (withPlugins) for (const name of plugins) packPlugin(name);
