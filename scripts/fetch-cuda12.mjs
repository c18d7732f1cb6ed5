// Puts a CUDA 12.4 toolkit into build/cuda12 without touching the system:
//
//   node scripts/fetch-cuda12.mjs        then: node scripts/build-cuda.mjs --major 12
//
// Debian 13 has the toolkit in its section non-free, under NVIDIA's licence. apt-get downloads the
// packages from a source list and into folders of its own, and dpkg unpacks them without installing
// them. The toolkit's usual layout is then made of links (build/cuda12/toolkit). It takes 1.2 GB to
// download and 0.7 GB to keep.
import { spawnSync } from "node:child_process";
import { copyFileSync, existsSync, mkdirSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { downloadPackages } from "./debian-packages.mjs";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const folder = join(root, "build/cuda12");
const apt = join(folder, "apt");
const unpacked = join(folder, "root");
const toolkit = join(folder, "toolkit");

/** The compiler, headers with the static runtime, C++ libraries, and cuBLASLt for tests on a GPU. */
const packages = [
  ...["nvidia-cuda-toolkit", "nvidia-cuda-dev", "libnvvm4", "libcudart12", "libcublaslt12"],
  ...["libcub-dev", "libthrust-dev", "libcu++-dev"],
];

/** Static libraries that the plugin links. The others take 1.9 GB. */
const linked = ["*libcudart_static.a", "*libcudadevrt.a"];

function run(what, command, args, cwd = folder) {
  console.log(`fetch-cuda12: ${what} ...`);
  const { status, error, stderr } = spawnSync(command, args, { cwd, encoding: "utf8" });
  if (status === 0) return;
  console.error(
    `${stderr ?? ""}fetch-cuda12: ${what} failed${error ? `: ${error.message}` : ""}: ${[command, ...args].join(" ")}`,
  );
  process.exit(1);
}

if (existsSync(join(toolkit, "bin/nvcc"))) {
  console.log(`fetch-cuda12: ${toolkit} is there`);
  process.exit(0);
}
const release = { suite: "trixie", components: "main contrib non-free", size: "1.2 GB" };
mkdirSync(folder, { recursive: true });
const debs = downloadPackages(apt, packages, release, run);
rmSync(unpacked, { recursive: true, force: true });
mkdirSync(unpacked, { recursive: true });
for (const deb of debs) {
  const name = basename(deb);
  if (!name.startsWith("nvidia-cuda-dev_")) {
    run(`unpacks ${name}`, "dpkg-deb", ["-x", deb, unpacked]);
    continue;
  }
  const shell = (tar) => ["-c", `dpkg-deb --fsys-tarfile "$1" | tar -x -C "$2" ${tar}`, "sh"];
  run(`unpacks ${name}`, "sh", [...shell("--exclude='*.a'"), deb, unpacked]);
  const wanted = linked.map((pattern) => `'${pattern}'`).join(" ");
  run("unpacks the runtime", "sh", [...shell(`--wildcards ${wanted}`), deb, unpacked]);
}

const usr = join(unpacked, "usr");
const nvidia = join(usr, "lib/nvidia-cuda-toolkit");
rmSync(toolkit, { recursive: true, force: true });
for (const part of ["bin", "nvvm/bin", "nvvm/libdevice"])
  mkdirSync(join(toolkit, part), { recursive: true });
for (const tool of ["cudafe++", "ptxas", "fatbinary", "nvlink", "bin2c", "cuobjdump"])
  symlinkSync(join(usr, "bin", tool), join(toolkit, "bin", tool));
symlinkSync(join(nvidia, "bin/crt"), join(toolkit, "bin/crt"));
symlinkSync(join(nvidia, "bin/cicc"), join(toolkit, "nvvm/bin/cicc"));
const device = "libdevice.10.bc";
symlinkSync(join(nvidia, "libdevice", device), join(toolkit, "nvvm/libdevice", device));
symlinkSync(join(usr, "include"), join(toolkit, "include"));
symlinkSync(join(usr, "lib/x86_64-linux-gnu"), join(toolkit, "lib64"));
// nvcc finds the other tools from its own place, so it is a copy. Debian's profile has fixed paths.
copyFileSync(join(nvidia, "bin/nvcc"), join(toolkit, "bin/nvcc"));
writeFileSync(
  join(toolkit, "bin/nvcc.profile"),
  `
TOP              = $(_HERE_)/..
NVVMIR_LIBRARY_DIR = $(TOP)/$(_NVVM_BRANCH_)/libdevice
LD_LIBRARY_PATH += $(TOP)/lib64:
PATH            += $(TOP)/$(_NVVM_BRANCH_)/bin:$(_HERE_):
INCLUDES        +=  "-I$(TOP)/include" $(_SPACE_)
LIBRARIES        =+ $(_SPACE_) "-L$(TOP)/lib64/stubs" "-L$(TOP)/lib64"
`,
);
run("tries nvcc", join(toolkit, "bin/nvcc"), ["--version"]);
rmSync(apt, { recursive: true, force: true });
console.log(`fetch-cuda12: ${toolkit}. Now: node scripts/build-cuda.mjs --major 12`);
