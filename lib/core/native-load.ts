import { execFile } from "node:child_process";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";

const require = createRequire(import.meta.url);

/** Properties of the system that decide whether an addon loads. */
export interface System {
  platform: string;
  arch: string;
  /** Version of glibc; undefined on systems with another C library. */
  glibc: string | undefined;
}

export function thisSystem(): System {
  const { header } = process.report.getReport() as { header: { glibcVersionRuntime?: string } };
  return { platform: process.platform, arch: process.arch, glibc: header.glibcVersionRuntime };
}

/**
 * Path of the addon's file: the build in a clone, otherwise the package's prebuild.
 * @throws Error if there is none for this system
 */
export function addonFile(root: string): string {
  const { path } = require("node-gyp-build") as { path: (root: string) => string };
  return path(root);
}

/** Debian packages that contain the libraries which the addon links. */
const debianPackages: Readonly<Record<string, string>> = {
  "libdnnl.so": "libdnnl-dev",
  "libgomp.so": "libgomp1",
  "libOpenCL.so": "ocl-icd-libopencl1",
  "libstdc++.so": "libstdc++6",
  "libgcc_s.so": "libgcc-s1",
};

/**
 * Explains why the addon of a folder does not load, and how to fix it. @param message the loader's
 * own message
 */
export function explainLoadFailure(root: string, message: string, system: System): string {
  return `[native] the native addon could not be loaded: ${reason(root, message, system)}`;
}

/** What to do on a system that no addon is made for; null on the others. */
function elsewhere({ platform, arch }: System): string | null {
  if (platform === "linux" && ["x64", "arm64"].includes(arch)) return null;
  const supported =
    "LlamaForge runs on Linux with glibc, on x86-64 and ARM64 " +
    `(this Node.js is for ${platform}-${arch}).\n`;
  const remedies: Readonly<Record<string, string>> = {
    darwin:
      "On a Mac, run it in a Linux container (ARM64 on Apple silicon): " +
      'docker run -it -v "$PWD":/work -w /work node:22-bookworm bash',
    win32:
      "On Windows, run it under WSL 2: wsl --install, then install Node.js and LlamaForge in there",
  };
  const other = "Run it on such a machine, or in a container of such a system";
  return supported + (remedies[platform] ?? other);
}

function reason(root: string, message: string, system: System): string {
  const unsupported = elsewhere(system);
  if (unsupported !== null) return unsupported;
  const { platform, arch, glibc } = system;
  const clone = existsSync(join(root, "CMakeLists.txt"));
  const here = `${platform}-${arch}`;
  const again = clone
    ? "Build it again: npm run setup"
    : "Install the package again: npm install --force llamaforge";
  const source = "or build it on this machine, in a clone of the repository: npm run setup";
  const file = fileOf(root);
  if (file === undefined) {
    if (clone) return `it is not built in ${root}.\nBuild it: npm run setup`;
    const offered = prebuilt(root);
    if (offered.includes(here)) return `${root} is damaged (${message}).\n${again}`;
    return (
      `${root} has none for ${here}, only for ${offered.join(", ") || "no system at all"}.\n` +
      "Build it on this machine, in a clone of the repository: npm run setup"
    );
  }
  if (platform === "linux" && glibc === undefined) {
    return (
      `${file} needs glibc, and this system has another C library (musl, as on Alpine).\n` +
      `Use a system or container image with glibc, such as node:22-bookworm-slim, ${source}`
    );
  }
  const symbol = /version `((GLIBC|GLIBCXX|CXXABI|GOMP)_[\d.]+)' not found/.exec(message);
  if (symbol) {
    const needed = needs(file);
    const [what, has, wanted] =
      symbol[2] === "GLIBC"
        ? ["glibc", ` ${glibc}`, needed.glibc ?? symbol[1]?.slice("GLIBC_".length)]
        : ["libstdc++", "", `of ${symbol[1]}`];
    return (
      `${file} needs ${what} ${wanted} or newer, and this system's${has} is older (${message}).\n` +
      `Use a newer system or container image (Debian 12, Ubuntu 22.04, RHEL 9 or newer), ${source}`
    );
  }
  const built = architecture(file);
  if (built !== undefined && built !== arch) {
    return (
      `${file} is for ${built}, and this Node.js is for ${arch} (${message}).\n` +
      "Was node_modules copied from another machine? Install it here: npm install --force llamaforge"
    );
  }
  const missing = /(\S+\.so[.\d]*): cannot open shared object file/.exec(message)?.[1];
  if (missing) {
    const name =
      missing
        .split("/")
        .at(-1)
        ?.replace(/\.so[.\d]*$/, ".so") ?? "";
    const debian = debianPackages[name];
    const install = debian
      ? `Install it (on Debian and Ubuntu: apt-get install ${debian}), or`
      : "";
    if (needs(file).libraries?.includes(missing)) {
      return `${missing}, which belongs beside ${file}, is not there.\n${again}`;
    }
    return `${file} needs ${missing}, which is not on this system.\n${install || "Install it, or"} ${lower(again)}`;
  }
  if (built === undefined || /ELF|too short|cannot read file data|segment/.test(message)) {
    return `${file} is damaged (${message}).\n${again}`;
  }
  return `${message}\n${again}`;
}

function lower(sentence: string): string {
  return sentence.charAt(0).toLowerCase() + sentence.slice(1);
}

function fileOf(root: string): string | undefined {
  try {
    return addonFile(root);
  } catch {
    return undefined;
  }
}

/** Systems for which the package has an addon. */
function prebuilt(root: string): string[] {
  const folder = join(root, "prebuilds");
  return existsSync(folder) ? readdirSync(folder).sort() : [];
}

/** Requirements that scripts/prebuild.mjs measured and stored; empty for a build in a clone. */
function needs(file: string): { glibc?: string; libraries?: string[] } {
  try {
    return JSON.parse(readFileSync(join(dirname(file), "needs.json"), "utf8"));
  } catch {
    return {};
  }
}

/** Node's name for the architecture of an ELF file; undefined for any other file. */
function architecture(file: string): string | undefined {
  const head = readFileSync(file).subarray(0, 20);
  if (head.length < 20 || head.readUInt32BE(0) !== 0x7f454c46) return undefined;
  const machine = head.readUInt16LE(18);
  return { 3: "ia32", 40: "arm", 62: "x64", 183: "arm64", 243: "riscv64" }[machine];
}

const program = `require(process.argv[1]); require("node:fs").writeSync(1, "loaded");`;

/**
 * Loads the addon in a child process, so that a crash ends only the child.
 * @returns the reason why it does not load; null if it does
 */
export function probeAddon(root: string, system = thisSystem()): Promise<string | null> {
  const file = fileOf(root);
  if (file === undefined) return Promise.resolve(explainLoadFailure(root, "no such file", system));
  return new Promise((resolve) => {
    const args = ["-e", program, file];
    execFile(process.execPath, args, { timeout: 60_000 }, (failure, stdout, stderr) => {
      if (!failure && stdout === "loaded") resolve(null);
      else if (failure?.signal) {
        const what = `the process that tried ${file} was ended by ${failure.signal}`;
        const lacksAvx2 = failure.signal === "SIGILL" && system.arch === "x64";
        const why = lacksAvx2 ? ": this CPU lacks AVX2, which it needs" : "";
        resolve(`[native] ${what}${why}`);
      } else {
        const message = /^(?:\w*Error): (.*)$/m.exec(stderr)?.[1] ?? stderr.trim().slice(-500);
        resolve(explainLoadFailure(root, message, system));
      }
    });
  });
}
