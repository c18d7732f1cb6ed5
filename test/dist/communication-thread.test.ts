/**
 * The CPU's communication stream ends on the thread that releases it last:
 * csrc/comm/cpu_collectives.cpp under sanitizers.
 */
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { canCompileSources, compile, sanitized } from "../support/cpp.js";

/**
 * Jobs that own their thread, as those of a group do. The thread itself or another releases the
 * last.
 */
const program = `
  #include <cstdio>
  #include <future>
  #include "comm/cpu_collectives.h"
  using llamaforge::comm::CommunicationThread;

  int main() {
    for (int round = 0; round < 300; ++round) {
      auto thread = std::make_shared<CommunicationThread>();
      std::promise<void> gone, ended;
      thread->submit([thread, released = gone.get_future().share()] { released.wait(); });
      thread->submit([owned = std::make_shared<int>(round)] {});
      std::weak_ptr<CommunicationThread> left = thread;
      thread.reset();
      gone.set_value();
      while (left.lock()) std::this_thread::yield();
    }
    for (int round = 0; round < 300; ++round) {
      std::promise<void> done;
      CommunicationThread thread;
      thread.submit([&done] { done.set_value(); });
      done.get_future().wait();
    }
    std::puts("ok");
  }`;

test.runIf(canCompileSources)(
  "is freed by its own last job, or by another thread",
  () => {
    const folder = mkdtempSync(join(tmpdir(), "llamaforge-thread-"));
    try {
      const sources = ["comm/cpu_collectives", "comm/status", "runtime/tensor"];
      const input = { text: program, sources: sources.map((name) => `csrc/${name}.cpp`) };
      const out = compile(join(folder, "thread"), input, sanitized);
      const { stdout, stderr } = spawnSync(out, { encoding: "utf8", timeout: 60_000 });
      expect(stdout + stderr).toBe("ok\n");
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  },
  200_000,
);
