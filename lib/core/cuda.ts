import { execFile } from "node:child_process";
import { fileURLToPath } from "node:url";
import type { CudaInfo } from "./native.js";

/** Outcome of trying CUDA: the GPUs found, or the reason why CUDA cannot be used. */
export type CudaProbe =
  | {
      info: CudaInfo;
      /** Free bytes of each GPU, or the reason why they are unknown. */
      free: (number | string)[];
      driverFile: string | null;
      error?: undefined;
    }
  | { info?: undefined; free?: undefined; error: string };

// The program uses none of this library's TypeScript, because the child must run both from sources
// and from dist.
const program = `
  const addon = require("node-gyp-build")(process.argv[1]);
  addon.setPluginFolders(process.argv.slice(2));
  let answer;
  try {
    const info = addon.cudaInfo();
    const free = info.devices.map((_, index) => {
      try {
        return addon.gpuFreeBytes(index);
      } catch (error) {
        return error.message;
      }
    });
    answer = { info, free };
    const mapped = require("node:fs").readFileSync("/proc/self/maps", "utf8");
    answer.driverFile = /\\/\\S*libcuda\\.so\\S*/.exec(mapped)?.[0] ?? null;
  } catch (error) {
    answer = { error: error.message };
  }
  require("node:fs").writeSync(1, JSON.stringify(answer));
`;

/**
 * Tries the CUDA plugin in a child process. A driver or library that crashes ends only the child,
 * and this process keeps no GPU memory.
 * @param folders folders with plugins, in addition to the addon's own
 */
export function probeCuda(folders: readonly string[] = []): Promise<CudaProbe> {
  const root = fileURLToPath(new URL("../..", import.meta.url));
  const args = ["-e", program, "--", root, ...folders];
  return new Promise((resolve) => {
    execFile(process.execPath, args, { cwd: root, timeout: 60_000 }, (failure, stdout, stderr) => {
      if (!failure) {
        resolve(JSON.parse(stdout) as CudaProbe);
        return;
      }
      const how = failure.signal ? `was ended by ${failure.signal}` : `exited with ${failure.code}`;
      resolve({ error: `the process that tried CUDA ${how}: ${stderr.trim().slice(-2000)}` });
    });
  });
}
