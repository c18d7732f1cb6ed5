/**
 * NCCL is missing, too old, or not NCCL at all. csrc/cuda/comm/nccl.cpp opens the library at run
 * time and uses no GPU. The test compiles it with a stand-in for CUDA's header and runs it with
 * fake libraries, on any machine with a compiler.
 */
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { canCompileSources, compile } from "../support/cpp.js";

/** The functions that LlamaForge calls, besides ncclGetVersion. */
const functions = [
  "GetUniqueId",
  "GetErrorString",
  "GetLastError",
  "CommInitRankConfig",
  "CommGetAsyncError",
  "CommFinalize",
  "CommDestroy",
  "CommAbort",
  "AllReduce",
  "ReduceScatter",
  "AllGather",
  "Broadcast",
];

describe.runIf(canCompileSources)(
  "NCCL that cannot be used is an error that says what to do",
  () => {
    let folder: string;
    let program: string;
    beforeAll(() => {
      folder = mkdtempSync(join(tmpdir(), "llamaforge-nccl-"));
      writeFileSync(
        join(folder, "cuda_runtime_api.h"),
        "#pragma once\n#define CUDART_VERSION 13000\nusing cudaStream_t = void*;\n",
      );
      const text = `#include <cstdio>
      #include "cuda/comm/nccl.h"
      #include "runtime/error.h"
      int main() {
        try {
          std::puts(llamaforge::cuda::nccl_library().description().c_str());
        } catch (const llamaforge::Error& error) {
          std::puts(error.what());
          return 2;
        }
      }`;
      const sources = ["csrc/cuda/comm/nccl.cpp", "csrc/cuda/runtime/runtime_library.cpp"];
      program = compile(join(folder, "main"), { text, sources }, [`-I${folder}`]);
    }, 120_000);
    afterAll(() => rmSync(folder, { recursive: true, force: true }));

    function open(environment: Record<string, string>): { said: string; status: number | null } {
      const { LLAMAFORGE_NCCL: _, ...rest } = process.env;
      const env = { ...rest, ...environment };
      const { stdout, status } = spawnSync(program, { env, encoding: "utf8" });
      return { said: stdout.trim(), status };
    }

    /**
     * A library that reports this version, encoded as by ncclGetVersion, and has these functions.
     */
    function fake(name: string, version: number, names: readonly string[] = functions): string {
      const file = join(folder, name);
      const others = names.map((each) => `extern "C" int nccl${each}() { return 0; }`).join("\n");
      const source = `extern "C" int ncclGetVersion(int* v) { *v = ${version}; return 0; }\n${others}\n`;
      compile(file, { text: source }, ["-shared", "-fPIC"]);
      return file;
    }

    test("no such file: the path, and how to install it", () => {
      const { said, status } = open({ LLAMAFORGE_NCCL: "/nonexistent/libnccl.so.2" });
      expect(status).toBe(2);
      expect(said).toContain("NCCL for CUDA 13 was not found");
      // The error names the requested file. No other file is tried.
      expect(said.match(/\n {2}\S+: /g)).toEqual(["\n  /nonexistent/libnccl.so.2: "]);
      expect(said).toContain("pip install nvidia-nccl-cu13");
      expect(said).toContain("set LLAMAFORGE_NCCL to the path of libnccl.so.2");
    });

    test("nothing named and nothing there: every place that was tried", () => {
      const empty = {
        PATH: folder,
        HOME: folder,
        LD_LIBRARY_PATH: "",
        CUDA_HOME: join(folder, "cuda"),
      };
      const { said, status } = open(empty);
      // The case needs a machine without NCCL in the system's folders.
      if (status === 0) return expect(said).toMatch(/^NCCL \d/);
      expect(said).toContain("\n  libnccl.so.2: ");
      expect(said).toContain(`\n  ${join(folder, "cuda")}/lib64/libnccl.so.2: `);
      expect(said).toContain("\n  /usr/local/cuda/lib64/libnccl.so.2: ");
    });

    test("a file that is no library", () => {
      const file = join(folder, "text.so");
      writeFileSync(file, "not a library\n");
      const { said, status } = open({ LLAMAFORGE_NCCL: file });
      expect(status).toBe(2);
      expect(said).toMatch(/text\.so: .*(file too short|invalid ELF header)/);
    });

    test.each([
      [1_305, "1.3.5"],
      [2_804, "2.8.4"],
      [21_703, "2.17.3"],
    ])("version code %i is too old", (code, version) => {
      const file = fake(`libnccl-${code}.so`, code);
      const { said, status } = open({ LLAMAFORGE_NCCL: file });
      expect(status).toBe(2);
      expect(said).toContain(`${file} is NCCL ${version}; 2.18 or newer is needed`);
      expect(said).toContain("pip install nvidia-nccl-cu13");
    });

    test("a library without one of the functions, or without any", () => {
      const most = functions.filter((name) => name !== "CommInitRankConfig");
      const lacking = fake("libnccl-lacking.so", 22_304, most);
      expect(open({ LLAMAFORGE_NCCL: lacking })).toEqual({
        said: `${lacking} has no ncclCommInitRankConfig`,
        status: 2,
      });
      const other = join(folder, "other.so");
      compile(other, { text: "" }, ["-shared", "-fPIC"]);
      const { said, status } = open({ LLAMAFORGE_NCCL: other });
      expect({ said, status }).toEqual({ said: `${other} has no ncclGetVersion`, status: 2 });
    });

    test("one that fits is used, and named with its version and place", () => {
      const file = fake("libnccl-good.so", 22_304);
      expect(open({ LLAMAFORGE_NCCL: file })).toEqual({
        said: `NCCL 2.23.4 from ${file}`,
        status: 0,
      });
    });
  },
);
