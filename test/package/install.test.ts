// docs/faults.md, rows I1 and I2: a user installs the tarballs of `npm run prebuild` on a machine
// without compiler and oneDNN.
import { execFileSync, spawnSync } from "node:child_process";
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { buildLibrary, root } from "../cli/build.js";

const folder = mkdtempSync(join(tmpdir(), "llamaforge-package-"));
const tarballs = join(folder, "tarballs");
const project = join(folder, "project");
const installed = join(project, "node_modules/llamaforge");
const native = join(installed, "prebuilds/linux-x64");
const addon = join(native, "llamaforge.node");
const manifest = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));
/** CUDA majors whose plugins are built. */
const majors = ["12", "13"].filter((major) =>
  existsSync(join(root, `build/Release/libllamaforge_cuda${major}.so`)),
);
/** Systems whose addons are built. */
const systems = [
  "linux-x64",
  ...(existsSync(join(root, "build/arm64/Release/llamaforge.node")) ? ["linux-arm64"] : []),
];
const release = existsSync("/etc/os-release") ? readFileSync("/etc/os-release", "utf8") : "";
const onDebian12 = /^ID=debian$/m.test(release) && /^VERSION_ID="12"$/m.test(release);
const minutes = 60_000;

/** Node, npm, a shell and nothing else: no compiler, no cmake. */
const bare = join(folder, "bin");
const environment = {
  PATH: bare,
  HOME: process.env.HOME,
  npm_config_cache: execFileSync("npm", ["config", "get", "cache"], { encoding: "utf8" }).trim(),
};

function run(command: string, args: string[], options: { cwd?: string; env?: object } = {}) {
  const { cwd = project, env = {} } = options;
  const { status, stdout, stderr } = spawnSync(join(bare, command), args, {
    cwd,
    encoding: "utf8",
    env: { ...environment, ...env } as NodeJS.ProcessEnv,
  });
  return { status, stdout, stderr };
}

beforeAll(() => {
  buildLibrary();
  const prebuild = [
    "scripts/prebuild.mjs",
    "--no-build",
    "--systems",
    systems.join(),
    "--out",
    tarballs,
  ];
  execFileSync(
    process.execPath,
    [...prebuild, ...(majors.length > 0 ? ["--majors", majors.join()] : ["--cpu-only"])],
    {
      cwd: root,
      stdio: ["ignore", "ignore", "pipe"],
    },
  );
  mkdirSync(bare);
  const node = dirname(process.execPath);
  symlinkSync(process.execPath, join(bare, "node"));
  for (const name of ["npm", "npx"]) symlinkSync(join(node, name), join(bare, name));
  symlinkSync("/bin/sh", join(bare, "sh"));
  mkdirSync(project);
  writeFileSync(join(project, "package.json"), "{}\n");
  const files = readdirSync(tarballs).map((name) => join(tarballs, name));
  const install = ["install", "--prefer-offline", "--no-audit", "--no-fund", ...files];
  const { status, stderr } = run("npm", install);
  expect(status, stderr).toBe(0);
}, 5 * minutes);

afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** Whether a version such as 3.4.29 comes before another. */
function olderThan(version: string, other: string): boolean {
  const [a, b] = [version, other].map((text) => text.split(".").map(Number)) as [
    number[],
    number[],
  ];
  const index = b.findIndex((part, i) => part !== (a[i] ?? 0));
  return index >= 0 && (a[index] ?? 0) < (b[index] as number);
}

describe("the tarballs", () => {
  const listed = (name: string) =>
    execFileSync("tar", ["-tzf", join(tarballs, name)], { encoding: "utf8" })
      .trim()
      .split("\n")
      .map((path) => path.replace(/^package\//, ""));

  test("hold the library, the addon and what it links, recipes and the quickstart's data", () => {
    const paths = listed(`llamaforge-${manifest.version}.tgz`);
    const prebuilds = paths.filter((path) => /^prebuilds\/.*\.(node|so)/.test(path));
    for (const name of ["llamaforge.node", "libdnnl.so.2", "libgomp.so.1", "libOpenCL.so.1"])
      expect(prebuilds).toContain(`prebuilds/linux-x64/${name}`);
    for (const wanted of [
      "dist/index.js",
      "dist/index.d.ts",
      "dist/cli/main.js",
      "bench/peer/torch_train.py",
      "configs/tinyllama-1.1b.yaml",
      "assets/quickstart/tokenizer.json",
      "prebuilds/linux-x64/licences/libdnnl2.txt",
      "prebuilds/linux-x64/licences/nlohmann-json3-dev.txt",
      "LICENSE",
    ])
      expect(paths).toContain(wanted);
    expect(paths.some((path) => path.startsWith("assets/quickstart/demo/text/"))).toBe(true);
    expect(paths.some((path) => path.startsWith("assets/quickstart/demo/code/lib/"))).toBe(true);
    const strange =
      /^(?!(dist|assets|configs|prebuilds|bench\/(peer|results)|docs|examples)\/|(package\.json|README\.md|LICENSE|CHANGELOG\.md|CONTRIBUTING\.md)$)/;
    expect(paths.filter((path) => strange.test(path))).toEqual([]);
    expect(paths.filter((path) => /\.(js|ts)\.map$|\.test\.|node_modules/.test(path))).toEqual([]);
  });

  test("hold the addon of each system that is built, and npm installs them there alone", () => {
    const paths = listed(`llamaforge-${manifest.version}.tgz`);
    for (const name of systems) {
      for (const file of ["llamaforge.node", "libgomp.so.1", "needs.json", "licences/libgomp1.txt"])
        expect(paths).toContain(`prebuilds/${name}/${file}`);
    }
    const { cpu } = JSON.parse(readFileSync(join(installed, "package.json"), "utf8"));
    expect(cpu).toEqual(systems.map((name) => name.split("-")[1]));
  });

  test.each(majors)("bring the plugin of CUDA %s in a package of this version", (major) => {
    expect(listed(`llamaforge-linux-x64-cuda${major}-${manifest.version}.tgz`).sort()).toEqual([
      "LICENSE",
      "README.md",
      `libllamaforge_cuda${major}.so`,
      "package.json",
    ]);
    const read = (path: string) => JSON.parse(readFileSync(join(project, path), "utf8"));
    const plugin = read(`node_modules/@llamaforge/linux-x64-cuda${major}/package.json`);
    expect(plugin).toMatchObject({ version: manifest.version, os: ["linux"], cpu: ["x64"] });
    const { optionalDependencies } = read("node_modules/llamaforge/package.json");
    expect(optionalDependencies[`@llamaforge/linux-x64-cuda${major}`]).toBe(manifest.version);
  });

  test("every link of the README leads to a file of the package", () => {
    const text = readFileSync(join(installed, "README.md"), "utf8");
    const links = [...text.matchAll(/\]\(([^)#\s]+)/g)].map(([, target]) => target as string);
    const inside = links.filter((target) => !target.includes(":"));
    expect(inside.length).toBeGreaterThan(20);
    expect(inside.filter((target) => !existsSync(join(installed, target)))).toEqual([]);
  });

  // docs/packages.md: glibc 2.34 and the libstdc++ of GCC 11, as RHEL 9 and Amazon Linux 2023 have.
  // Packages are made on Debian 12. A build on a newer system needs newer symbols.
  test.runIf(onDebian12)("need no newer symbols than the oldest supported systems have", () => {
    const newest = { GLIBC: "2.34", GLIBCXX: "3.4.29", CXXABI: "1.3.13", GCC: "7.0.0" };
    const folders = [
      ...systems.map((name) => join(installed, "prebuilds", name)),
      ...majors.map((major) => join(project, `node_modules/@llamaforge/linux-x64-cuda${major}`)),
    ];
    const binaries = folders.flatMap((place) =>
      readdirSync(place)
        .filter((name) => /\.(node|so)(\.|$)/.test(name))
        .map((name) => join(place, name)),
    );
    expect(binaries.length).toBeGreaterThan(5);
    const tooNew = binaries.flatMap((file) => {
      const text = execFileSync("readelf", ["-VW", file], { encoding: "utf8" });
      const needed = text.slice(text.indexOf("Version needs section"));
      return Object.entries(newest).flatMap(([prefix, version]) =>
        [...needed.matchAll(new RegExp(`Name: (${prefix}_([\\d.]+))`, "g"))]
          .filter(([, , number]) => olderThan(version, number as string))
          .map(([, symbol]) => `${file}: ${symbol}`),
      );
    });
    expect(tooNew).toEqual([]);
    const needs = JSON.parse(readFileSync(join(native, "needs.json"), "utf8"));
    expect(needs).toMatchObject({ glibc: "2.34", libstdcxx: "3.4.29" });
  });

  test("run nothing when they are installed", () => {
    const { scripts, gypfile } = JSON.parse(readFileSync(join(installed, "package.json"), "utf8"));
    expect(scripts).toBe(undefined);
    expect(gypfile).toBe(false);
  });
});

describe("installed where there is no compiler", () => {
  const loadedBy = (program: string, env: object) => {
    const code = `${program};
      const maps = require("node:fs").readFileSync("/proc/self/maps", "utf8");
      const files = new Set(maps.split("\\n").map((line) => line.split(/\\s+/)[5]).filter(Boolean));
      console.log(JSON.stringify([...files].filter((file) => /\\.(so|node)/.test(file))));`;
    const { stdout, stderr } = run("node", ["-e", code], { env });
    expect(stderr).toBe("");
    const loaded = JSON.parse(stdout) as string[];
    const system = /\/(ld-linux[^/]*|lib(c|m|dl|rt|pthread|stdc\+\+|gcc_s|atomic))[.-][^/]*$/;
    return {
      own: loaded
        .filter((path) => path.startsWith(native))
        .map((path) => path.slice(native.length + 1)),
      foreign: loaded.filter((path) => !path.startsWith(native) && !system.test(path)),
    };
  };

  test("every library that is loaded is the package's or one that Node needs itself", () => {
    // A foreign oneDNN on the loader's path is not used.
    const other = join(folder, "other");
    mkdirSync(other);
    cpSync(join(native, "libdnnl.so.2"), join(other, "libdnnl.so.2"));
    const { own, foreign } = loadedBy(`require(${JSON.stringify(addon)})`, {
      LD_LIBRARY_PATH: other,
    });
    expect(own).toEqual(
      expect.arrayContaining(["llamaforge.node", "libdnnl.so.2", "libgomp.so.1", "libOpenCL.so.1"]),
    );
    expect(foreign).toEqual([]);
  });

  test("training on several CPUs brings Gloo, and what Gloo needs, along", () => {
    const { own, foreign } = loadedBy("", { LD_PRELOAD: join(native, "libllamaforge_gloo.so") });
    const needed = ["libllamaforge_gloo.so", "libgloo.so.0", "libhiredis.so.0.14"];
    expect(own).toEqual(expect.arrayContaining([...needed, "libibverbs.so.1", "libnl-3.so.200"]));
    expect(foreign).toEqual([]);
  });

  test("doctor shows the prebuilt addon, and trains", { timeout: 3 * minutes }, () => {
    const doctor = run("npx", ["llamaforge", "doctor"]);
    expect(doctor.stdout).toContain(`from ${addon}`);
    expect(doctor.status, doctor.stdout).toBe(0);

    const settings = [
      "steps=3",
      "optimizer.warmupSteps=1",
      "evaluate.batches=1",
      "batch.microBatch=2",
    ];
    const sets = [...settings, "sample.maxTokens=4"].flatMap((setting) => ["--set", setting]);
    const quickstart = run("npx", ["llamaforge", "quickstart", ...sets]);
    expect(quickstart.status, quickstart.stderr).toBe(0);
    expect(existsSync(join(project, "runs/quickstart/report.html"))).toBe(true);
    const metrics = readFileSync(join(project, "runs/quickstart/metrics.jsonl"), "utf8");
    expect(metrics.trim().split("\n")).toHaveLength(3);
  });

  test("the README's lines of TypeScript run as they stand", { timeout: 3 * minutes }, () => {
    const text = readFileSync(join(installed, "README.md"), "utf8");
    const block = /```ts\n([\s\S]*?)```/.exec(text)?.[1] as string;
    writeFileSync(join(project, "train.mjs"), block);
    const { status, stdout, stderr } = run("node", ["train.mjs"]);
    expect(status, stderr).toBe(0);
    const losses = stdout
      .trim()
      .split("\n")
      .map((line) => Number(line.split(" ")[1]));
    expect(losses).toHaveLength(10);
    expect(losses[9]).toBeLessThan((losses[0] as number) - 0.5);
  });

  test("require() works as import does", () => {
    const { require_module: native } = process.features as { require_module?: boolean };
    const flags = native ? [] : ["--experimental-require-module"];
    const program =
      "const { zeros } = require('llamaforge'); zeros([2]).toArray().then((x) => console.log(x.length))";
    const { stdout, stderr } = run("node", [...flags, "--no-warnings", "-e", program]);
    expect(stdout.trim(), stderr).toBe("2");
  });
});

/** Each case damages the installation, states the expected message, and repairs the damage. */
describe("an installation that does not load says what to do", () => {
  const loading =
    "import('llamaforge').catch((error) => { console.log(error.code, error.message); })";
  const failure = () => run("node", ["-e", loading]).stdout;

  function withChanged(bytes: (original: Buffer) => Buffer, check: () => void): void {
    const kept = `${addon}.kept`;
    renameSync(addon, kept);
    writeFileSync(addon, bytes(readFileSync(kept)));
    try {
      check();
    } finally {
      renameSync(kept, addon);
    }
  }
  /** The text has the same length, so that all offsets of the file stay right. */
  const replacing = (from: string, to: string) => (original: Buffer) => {
    const changed = Buffer.from(original);
    const at = changed.indexOf(`${from}\0`);
    expect(at).toBeGreaterThan(0);
    changed.write(to, at);
    return changed;
  };

  test("a system with an older glibc", () => {
    withChanged(replacing("GLIBC_2.34", "GLIBC_9.34"), () => {
      expect(failure()).toMatch(/^ERR_DEVICE .*needs glibc 2\.34 or newer.*GLIBC_9\.34/);
      expect(failure()).toContain("Use a newer system or container image");
    });
  });

  test("a library that is missing", () => {
    withChanged(replacing("libgomp.so.1", "libgomq.so.1"), () => {
      expect(failure()).toContain("needs libgomq.so.1, which is not on this system");
      const doctor = run("npx", ["llamaforge", "doctor"]);
      expect(doctor.stdout).toContain("needs libgomq.so.1, which is not on this system");
      expect(doctor.status).toBe(2);
    });
  });

  test("node_modules of another machine", () => {
    const arm = (original: Buffer) => {
      const changed = Buffer.from(original);
      changed.writeUInt16LE(183, 18);
      return changed;
    };
    withChanged(arm, () => {
      expect(failure()).toContain("is for arm64, and this Node.js is for x64");
      expect(failure()).toContain("Install it here: npm install --force llamaforge");
    });
  });

  test("a file that was cut off", () => {
    withChanged(
      (original) => original.subarray(0, 100),
      () => expect(failure()).toContain(`${addon} is damaged (`),
    );
  });

  test("one that crashes: doctor tries it in a process of its own", () => {
    const crashing = join(folder, "crash.node");
    const source = "__attribute__((constructor)) static void crash(void) { __builtin_trap(); }";
    execFileSync("gcc", ["-shared", "-fPIC", "-x", "c", "-", "-o", crashing], { input: source });
    withChanged(
      () => readFileSync(crashing),
      () => {
        const doctor = run("npx", ["llamaforge", "doctor"]);
        expect(doctor.stdout).toContain("was ended by SIGILL");
        expect(doctor.stdout).toContain("lacks AVX2");
        expect(doctor.status).toBe(2);
      },
    );
  });

  test("a system that there is no addon for", () => {
    const aside = join(folder, "aside");
    renameSync(native, aside);
    const others = systems.filter((name) => name !== "linux-x64").join() || "no system at all";
    try {
      expect(failure()).toContain(`has none for linux-x64, only for ${others}`);
    } finally {
      renameSync(aside, native);
    }
  });
});
