// Builds the CUDA plugin, build/Release/libllamaforge_cuda<MAJOR>.so.
//
//   node scripts/build-cuda.mjs [--archs "80;90a" | --archs all] [--jobs N] [--if-available]
//
// --archs: the architectures of the last build by default, and 90a at first. --jobs: nvcc processes
// at a time, by default one for each core and 3 GB of memory. --if-available: does nothing if nvcc
// is not installed. Compiling needs no GPU.
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { availableParallelism, totalmem } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { cached, discardForeign } from "./cmake-folder.mjs";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const { values } = parseArgs({
  options: {
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

function nvcc() {
  const homes = [process.env.CUDA_HOME, process.env.CUDA_PATH, "/usr/local/cuda"].filter(Boolean);
  const paths = [
    ...homes.map((home) => join(home, "bin")),
    ...(process.env.PATH ?? "").split(":"),
  ].map((folder) => join(folder, "nvcc"));
  return paths.find((path) => existsSync(path));
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
  const text = "nvcc was not found in CUDA_HOME, /usr/local/cuda or on the PATH";
  if (values["if-available"]) {
    console.log(`build-cuda: ${text}: no CUDA plugin was built`);
    process.exit(0);
  }
  console.error(
    `build-cuda: ${text}. Install the CUDA toolkit: https://developer.nvidia.com/cuda-downloads`,
  );
  process.exit(1);
}
const folder = join(root, "build", "cuda");
const source = join(root, "csrc/cuda");
// The architectures of the last build are kept, even if the folder came with a copied clone.
values.archs ??= cached(folder, "LLAMAFORGE_CUDA_ARCHS");
discardForeign(folder, source, (message) => console.log(`build-cuda: ${message}`));
const generator = spawnSync("ninja", ["--version"]).status === 0 ? ["-G", "Ninja"] : [];
run(
  "cmake",
  ...["-S", source, "-B", folder, ...generator],
  ...[`-DCMAKE_CUDA_COMPILER=${compiler}`, `-DLLAMAFORGE_CUDA_JOBS=${values.jobs}`],
  ...(values.archs === undefined ? [] : [`-DLLAMAFORGE_CUDA_ARCHS=${values.archs}`]),
);
run("cmake", "--build", folder);
