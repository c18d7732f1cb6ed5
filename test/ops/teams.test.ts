/**
 * No CPU kernel allocates inside a team of threads. An exception cannot leave a team, so a lack of
 * memory there would end the process. A preloaded `operator new` ends it at the first such
 * allocation.
 */
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { root } from "../cli/build.js";
import { compile, hasCompiler } from "../support/cpp.js";
import { onGpu } from "../support/device.js";

const watchful = `
  #include <dlfcn.h>
  #include <omp.h>
  #include <unistd.h>
  #include <atomic>
  #include <cstdio>
  #include <cstdlib>
  #include <cstring>
  #include <new>

  static std::atomic<long> outside{0};
  // oneDNN manages its own teams.
  static bool is_addon(void* code) {
    Dl_info info;
    return dladdr(code, &info) && std::strstr(info.dli_fname, "llamaforge.node");
  }
  static void* take(void* caller, size_t bytes, size_t alignment = 16) {
    if (is_addon(caller)) {
      if (omp_in_parallel()) {
        char text[80];
        const int length = std::snprintf(text, sizeof text, "%zu bytes allocated in a team\\n", bytes);
        if (write(2, text, static_cast<size_t>(length)) < 0) std::abort();
        std::abort();
      }
      ++outside;
    }
    void* memory = nullptr;
    if (posix_memalign(&memory, alignment, bytes ? bytes : 1) != 0) throw std::bad_alloc();
    return memory;
  }
  #define CALLER __builtin_return_address(0)
  void* operator new(size_t bytes) { return take(CALLER, bytes); }
  void* operator new[](size_t bytes) { return take(CALLER, bytes); }
  void* operator new(size_t bytes, std::align_val_t to) { return take(CALLER, bytes, static_cast<size_t>(to)); }
  void* operator new[](size_t bytes, std::align_val_t to) { return take(CALLER, bytes, static_cast<size_t>(to)); }
  void operator delete(void* memory) noexcept { std::free(memory); }
  void operator delete[](void* memory) noexcept { std::free(memory); }
  void operator delete(void* memory, size_t) noexcept { std::free(memory); }
  void operator delete[](void* memory, size_t) noexcept { std::free(memory); }
  void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
  void operator delete[](void* memory, std::align_val_t) noexcept { std::free(memory); }
  void operator delete(void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }
  void operator delete[](void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }
  // Checks that the addon allocates through these functions.
  __attribute__((destructor)) static void count() { std::fprintf(stderr, "outside of teams: %ld\\n", outside.load()); }`;

test.runIf(hasCompiler && !onGpu())(
  "no operation allocates inside a team",
  () => {
    const folder = mkdtempSync(join(tmpdir(), "llamaforge-teams-"));
    try {
      const flags = ["-O1", "-shared", "-fPIC", "-fopenmp"];
      const library = compile(join(folder, "watchful.so"), { text: watchful }, flags);
      const { status, stdout, stderr } = spawnSync(
        process.execPath,
        [join(root, "test/support/kernel-sweep.mjs")],
        { env: { ...process.env, LD_PRELOAD: library, LLAMAFORGE_THREADS: "2" }, encoding: "utf8" },
      );
      expect(stderr).toMatch(/^outside of teams: \d{3,}\n$/);
      expect(stdout).toMatch(/^\d+ operations ran\n$/);
      expect(status).toBe(0);
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  },
  600_000,
);
