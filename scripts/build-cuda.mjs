// Builds the CUDA plugin, build/Release/libllamaforge_cuda<MAJOR>.so.
//
//   node scripts/build-cuda.mjs [--major 12] [--archs "80;90a" | --archs all] [--jobs N] [--if-available]
//
// --major: the CUDA major, by default that of the first nvcc found. CUDA 12 is also found in
// build/cuda12, where scripts/fetch-cuda12.mjs puts Debian's toolkit. --archs: the architectures of
// the last build by default, and 90a at first. --jobs: nvcc processes at a time, by default one for
// each core and 3 GB of memory. --if-available: does nothing if nvcc is not installed. Compiling
// needs no GPU.
import { spawnSync } from "node:child_process";
import { existsSync, readdirSync } from "node:fs";
import { availableParallelism, totalmem } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { cached, discardForeign } from "./cmake-folder.mjs";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const { values } = parseArgs({
  options: {
    major: { type: "string" },
    archs: { type: "string" },
    jobs: { type: "string", default: String(affordableJobs()) },
    "if-available": { type: "boolean", default: false },
  },
});

/**
 * Jobs that fit the cores and the memory: compiling the attention kernels takes up to 2 GB per
 * process.
 */
function affordableJobs() {
  return Math.max(1, Math.min(availableParallelism(), Math.floor(totalmem() / (3 * 2 ** 30))));
}

/** The CUDA major of a compiler: 12. */
function majorOf(nvcc) {
  const { stdout } = spawnSync(nvcc, ["--version"], { encoding: "utf8" });
  return /release (\d+)\./.exec(stdout ?? "")?.[1];
}

/** The first nvcc of the asked major, or of any. */
function nvcc() {
  const { CUDA_HOME, CUDA_PATH, PATH = "" } = process.env;
  const installed = readdirSync("/usr/local", { withFileTypes: true })
    .filter(({ name }) => /^cuda-\d/.test(name))
    .map(({ name }) => join("/usr/local", name))
    .sort()
    .reverse();
  const fetched = values.major === "12" ? [join(root, "build/cuda12/toolkit")] : [];
  const homes = [...fetched, CUDA_HOME, CUDA_PATH, "/usr/local/cuda", ...installed];
  const folders = [...homes.filter(Boolean).map((home) => join(home, "bin")), ...PATH.split(":")];
  return folders
    .map((folder) => join(folder, "nvcc"))
    .filter((path) => existsSync(path))
    .find((path) => values.major === undefined || majorOf(path) === values.major);
}

function run(command, ...args) {
  const { status, error } = spawnSync(command, args, { cwd: root, stdio: "inherit" });
  if (status === 0) return;
  console.error(
    `build-cuda: ${[command, ...args].join(" ")} failed${error ? `: ${error.message}` : ""}`,
  );
  process.exit(1);
}

const compiler = nvcc();
if (!compiler) {
  const which = values.major === undefined ? "nvcc" : `nvcc of CUDA ${values.major}`;
  const text = `${which} was not found in CUDA_HOME, /usr/local/cuda* or on the PATH`;
  if (values["if-available"]) {
    console.log(`build-cuda: ${text}: no CUDA plugin was built`);
    process.exit(0);
  }
  console.error(
    `build-cuda: ${text}. Install the CUDA toolkit: https://developer.nvidia.com/cuda-downloads` +
      (values.major === "12" ? "\nOn Debian and Ubuntu also: node scripts/fetch-cuda12.mjs" : ""),
  );
  process.exit(1);
}
// Each major has a build folder of its own. A folder keeps its compiler for good.
const major = majorOf(compiler);
const folder = join(root, "build", major === "13" ? "cuda" : `cuda${major}/build`);
const source = join(root, "csrc/cuda");
// The architectures of the last build are kept, even if the folder came with a copied clone.
values.archs ??= cached(folder, "LLAMAFORGE_CUDA_ARCHS");
discardForeign(folder, source, (message) => console.log(`build-cuda: ${message}`));
const generator = spawnSync("ninja", ["--version"]).status === 0 ? ["-G", "Ninja"] : [];
run(
  "cmake",
  ...["-S", source, "-B", folder, ...generator],
  ...[`-DCMAKE_CUDA_COMPILER=${compiler}`, `-DLLAMAFORGE_CUDA_JOBS=${values.jobs}`],
  // Headers and runtime of the same toolkit, also where another one is installed.
  ...(major === values.major ? [`-DCUDAToolkit_ROOT=${dirname(dirname(compiler))}`] : []),
  ...(values.archs === undefined ? [] : [`-DLLAMAFORGE_CUDA_ARCHS=${values.archs}`]),
);
run("cmake", "--build", folder);
