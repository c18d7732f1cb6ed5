/**
 * CUDA is requested and absent, from the driver to the plugin. A fake driver that only knows its
 * version replaces NVIDIA's, so the tests run on any machine. Each case has its own process,
 * because a process loads a library only once.
 */
import { execFileSync, spawnSync } from "node:child_process";
import { copyFileSync, mkdirSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { probeCuda } from "../../lib/core/cuda.js";
import { buildInfo } from "../../lib/core/native.js";
import { canCompileSources, compile, driverOfOurOwn, hasCompiler } from "../support/cpp.js";

const root = fileURLToPath(new URL("../..", import.meta.url));

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "llamaforge-plugin-"));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** A shared library from C++ text. */
function library(path: string, source: string): string {
  const file = join(folder, path);
  mkdirSync(join(file, ".."), { recursive: true });
  return compile(file, { text: source }, ["-shared", "-fPIC"]);
}

const driver = (version: number) => driverOfOurOwn(folder, version);

/** The error of the first tensor on cuda:0 in a process with this environment. */
function failure(environment: Record<string, string>): { code: string; message: string } {
  const program = `
    const addon = require("node-gyp-build")(${JSON.stringify(root)});
    try {
      new addon.NativeTensor(1, "f32", [2]);
      console.log(JSON.stringify({ code: "none" }));
    } catch (error) {
      console.log(JSON.stringify({ code: error.code, message: error.message }));
    }`;
  const output = execFileSync(process.execPath, ["-e", program], {
    cwd: root,
    env: { ...process.env, ...environment },
  });
  return JSON.parse(output.toString());
}

describe.runIf(hasCompiler)("a GPU that cannot be used is an error that says what to do", () => {
  it("driver too old for every plugin", () => {
    const { code, message } = failure({ LD_LIBRARY_PATH: driver(11_080) });
    expect(code).toBe("ERR_DEVICE");
    expect(message).toContain("the driver supports CUDA 11.8");
    expect(message).toContain("update the driver");
  });

  it("plugin missing: every path tried and the command that installs it", () => {
    const file = join(folder, "nowhere", "plugin.so");
    const { code, message } = failure({
      LD_LIBRARY_PATH: driver(13_000),
      LLAMAFORGE_CUDA_PLUGIN: file,
    });
    expect(code).toBe("ERR_DEVICE");
    expect(message).toContain(`${file}: no such file`);
    expect(message).toContain("npm install @llamaforge/linux-x64-cuda13");
  });

  it("a file that is no plugin", () => {
    const file = library("other.so", "int x;");
    const { message } = failure({
      LD_LIBRARY_PATH: driver(13_000),
      LLAMAFORGE_CUDA_PLUGIN: file,
    });
    expect(message).toContain(`${file}: not a plugin of LlamaForge`);
  });

  it("a plugin built from other sources", () => {
    const file = library(
      "stale.so",
      'extern "C" const void* llamaforge_cuda_plugin(const char*) { return nullptr; }',
    );
    const { message } = failure({
      LD_LIBRARY_PATH: driver(13_000),
      LLAMAFORGE_CUDA_PLUGIN: file,
    });
    expect(message).toContain(`${file}: built from other sources than the addon`);
  });

  it("a plugin that crashes takes only doctor's child process along", async () => {
    const file = library(
      "crash.so",
      '#include <cstdlib>\nextern "C" const void* llamaforge_cuda_plugin(const char*) { std::abort(); }',
    );
    const before = { ...process.env };
    Object.assign(process.env, {
      LD_LIBRARY_PATH: driver(13_000),
      LLAMAFORGE_CUDA_PLUGIN: file,
    });
    try {
      const { info, error } = await probeCuda();
      expect(info).toBeUndefined();
      expect(error).toContain("was ended by SIGABRT");
    } finally {
      process.env = before;
    }
  });
});

/** A fake plugin that sees two GPUs and counts the calls for each. */
const twoGpus = `
  #include <cstdio>
  #include <cstring>
  #include "runtime/plugin.h"
  using namespace llamaforge;
  static void said(const char* what, int index) { std::fprintf(stderr, "%s %d\\n", what, index); }
  static GpuDescription describe(int index) {
    said("describe", index);
    return {"A GPU", 9, 0, 80u << 20};
  }
  static uint64_t free_bytes(int index) {
    said("free", index);
    if (index == 1) throw Error("ERR_DEVICE", "somebody else's");
    return 70u << 20;
  }
  extern "C" const Plugin* llamaforge_cuda_plugin(const char* id) {
    static Plugin plugin = {};
    plugin.build_id = id;
    plugin.device_count = [] { return 2; };
    plugin.describe = describe;
    plugin.free_bytes = free_bytes;
    plugin.libraries = [] { return std::vector<std::string>{"a library"}; };
    return &plugin;
  }`;

describe.runIf(canCompileSources)("which GPUs a process uses", () => {
  let environment: Record<string, string>;
  beforeAll(() => {
    const file = join(folder, "two-gpus.so");
    compile(file, { text: twoGpus }, ["-shared", "-fPIC"]);
    environment = { LD_LIBRARY_PATH: driver(13_000), LLAMAFORGE_CUDA_PLUGIN: file };
  });

  function run(program: string): { said: string[]; printed: unknown } {
    const code = `const addon = require("node-gyp-build")(${JSON.stringify(root)}); ${program}`;
    const { stdout, stderr } = spawnSync(process.execPath, ["-e", code], {
      cwd: root,
      env: { ...process.env, ...environment },
      encoding: "utf8",
    });
    return { said: stderr.trim().split("\n"), printed: JSON.parse(stdout) };
  }

  it("a description of all uses none: each rank of a run asks for it", () => {
    const { said, printed } = run("console.log(JSON.stringify(addon.cudaInfo().devices))");
    expect(said).toEqual(["describe 0", "describe 1"]);
    const gpu = { name: "A GPU", capability: "9.0", memoryBytes: 80 * 2 ** 20 };
    expect(printed).toEqual([gpu, gpu]);
  });

  it("free memory is asked of one", () => {
    const { said, printed } = run("console.log(addon.gpuFreeBytes(0))");
    expect({ said, printed }).toEqual({ said: ["free 0"], printed: 70 * 2 ** 20 });
    const wrong = run(`
      const errors = [-1, 0.5, "0", undefined].map((index) => {
        try { addon.gpuFreeBytes(index); } catch (error) { return error.code; }
      });
      console.log(JSON.stringify(errors))`);
    expect(wrong.printed).toEqual(Array(4).fill("ERR_ARGUMENT"));
  });

  it("doctor shows a GPU that it cannot use beside one that it can", async () => {
    const before = { ...process.env };
    Object.assign(process.env, environment);
    try {
      const { info, free } = await probeCuda();
      expect(info?.devices).toHaveLength(2);
      expect(free).toEqual([70 * 2 ** 20, "somebody else's"]);
    } finally {
      process.env = before;
    }
  });
});

/** A fake plugin without GPUs, and without cuBLASLt where it is compiled with -DMISSING. */
const noGpus = `
  #include "runtime/plugin.h"
  using namespace llamaforge;
  extern "C" const Plugin* llamaforge_cuda_plugin(const char* id) {
    static Plugin plugin = {};
    plugin.build_id = id;
    plugin.device_count = [] { return 0; };
    plugin.libraries = [] { return std::vector<std::string>{}; };
    plugin.load_products = [] {
  #ifdef MISSING
      throw Error("ERR_DEVICE", "there is no cuBLASLt\\ntried: everywhere");
  #endif
    };
    return &plugin;
  }`;

describe.runIf(canCompileSources)("driver and libraries decide which major is loaded", () => {
  /** Folders as npm's packages make them: plugins of some majors, those in `lacking` without cuBLASLt. */
  function packages(majors: number[], lacking: number[] = []): string[] {
    return majors.map((major) => {
      const place = join(
        folder,
        `packages-${majors.join("-")}-${lacking.join("-")}`,
        `cuda${major}`,
      );
      mkdirSync(place, { recursive: true });
      const plugin = lacking.includes(major) ? incomplete : complete;
      copyFileSync(plugin, join(place, `libllamaforge_cuda${major}.so`));
      return place;
    });
  }
  let complete: string;
  let incomplete: string;
  beforeAll(() => {
    const shared = ["-shared", "-fPIC"];
    complete = compile(join(folder, "no-gpus.so"), { text: noGpus }, shared);
    incomplete = compile(join(folder, "lacking.so"), { text: noGpus }, [...shared, "-DMISSING"]);
  });

  interface Choice {
    plugin?: string;
    passedOver?: string[];
    error?: string;
  }

  /** An addon outside of the build, whose folder has no plugins. */
  function choice(version: number, folders: string[]): Choice {
    const alone = join(folder, "alone");
    mkdirSync(alone, { recursive: true });
    const addon = join(alone, "llamaforge.node");
    copyFileSync(join(root, "build/Release/llamaforge.node"), addon);
    const program = `
      const addon = require(${JSON.stringify(addon)});
      addon.setPluginFolders(${JSON.stringify(folders)});
      try { console.log(JSON.stringify(addon.cudaInfo())); }
      catch ({ message }) { console.log(JSON.stringify({ error: message })); }`;
    const env = { ...process.env, LD_LIBRARY_PATH: driver(version) };
    return JSON.parse(execFileSync(process.execPath, ["-e", program], { env }).toString());
  }

  it("one for CUDA 13 takes the plugin of CUDA 13, and that of 12 where there is no other", () => {
    const both = choice(13_000, packages([13, 12]));
    expect(both.plugin).toContain("libllamaforge_cuda13.so");
    expect(both.passedOver).toEqual([]);
    const older = choice(13_000, packages([12]));
    expect(older.plugin).toContain("libllamaforge_cuda12.so");
    expect(older.passedOver).toEqual([
      "CUDA 13: its plugin is not installed (npm install @llamaforge/linux-x64-cuda13)",
    ]);
  });

  it("one for CUDA 12 takes the plugin of CUDA 12, and says why not that of 13", () => {
    const { plugin, passedOver } = choice(12_040, packages([13, 12]));
    expect(plugin).toContain("libllamaforge_cuda12.so");
    expect(passedOver).toEqual([
      expect.stringMatching(
        /libllamaforge_cuda13\.so: needs a driver for CUDA 13, and this one supports 12\.4$/,
      ),
    ]);
  });

  it("the plugin of CUDA 12 is taken where cuBLASLt of CUDA 13 is missing", () => {
    const { plugin, passedOver } = choice(13_000, packages([13, 12], [13]));
    expect(plugin).toContain("libllamaforge_cuda12.so");
    expect(passedOver).toEqual([
      expect.stringMatching(/libllamaforge_cuda13\.so: there is no cuBLASLt$/),
    ]);
  });

  it("the newest is taken where all lack cuBLASLt, and then says what to install", () => {
    expect(choice(13_000, packages([13, 12], [13, 12])).plugin).toContain(
      "libllamaforge_cuda13.so",
    );
    expect(choice(13_000, packages([12], [12])).plugin).toContain("libllamaforge_cuda12.so");
  });

  it("one for CUDA 12 alone is an error that names the package of CUDA 12", () => {
    const { error } = choice(12_040, packages([13]));
    expect(error).toContain("The driver supports CUDA 12.4");
    expect(error).toContain("npm install @llamaforge/linux-x64-cuda12");
    expect(error).not.toContain("npm install @llamaforge/linux-x64-cuda13");
  });

  it("the packages are those of the addon's majors", () => {
    const { cudaMajors } = buildInfo();
    const names = readdirSync(join(root, "packages"));
    expect(names.sort()).toEqual(cudaMajors.map((major) => `linux-x64-cuda${major}`).sort());
  });
});

const onGpu = process.env.LLAMAFORGE_TEST_DEVICE?.startsWith("cuda") === true;

describe.runIf(hasCompiler && onGpu)("libraries of the plugin", () => {
  it("cuBLASLt of another major is refused with both", () => {
    const file = library(
      "cublaslt-12.so",
      '#include <cstddef>\nextern "C" size_t cublasLtGetVersion() { return 120805; }',
    );
    const { code, message } = failure({ LLAMAFORGE_CUBLASLT: file });
    expect(code).toBe("ERR_DEVICE");
    expect(message).toContain(`cuBLASLt 12.8.5 from ${file}`);
    expect(message).toContain("needs cuBLASLt 13");
  });

  it("cuBLASLt missing: what was tried and the command that installs it", () => {
    const file = join(folder, "nowhere.so");
    const { code, message } = failure({ LLAMAFORGE_CUBLASLT: file });
    expect(code).toBe("ERR_DEVICE");
    expect(message).toContain(file);
    expect(message).toContain("pip install nvidia-cublas");
  });

  it("doctor tells which NCCL there is, or that there is none", async () => {
    const { info } = await probeCuda();
    expect(info?.libraries).toEqual([
      expect.stringMatching(/^cuBLASLt 13\./),
      expect.stringMatching(
        /^NCCL 2\.\d+\.\d+ from \/|^no NCCL, which training on several GPUs needs: /,
      ),
    ]);
  });
});
