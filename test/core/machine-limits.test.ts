/** Limits of a container. A folder with real control group files stands for the root. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { availableParallelism, tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterAll, beforeEach, describe, expect, test } from "vitest";
import {
  groupLimits,
  standardThreads,
  usableMemory,
  usableThreads,
} from "../../lib/core/machine-limits.js";

const made: string[] = [];
let root: string;
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "llamaforge-groups-"));
  made.push(root);
});
afterAll(() => {
  for (const folder of made) rmSync(folder, { recursive: true, force: true });
});

function write(files: Record<string, string>): void {
  for (const [name, text] of Object.entries(files)) {
    mkdirSync(dirname(join(root, name)), { recursive: true });
    writeFileSync(join(root, name), text);
  }
}

const version2 = "31 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup rw,nsdelegate\n";

describe("control groups of version 2", () => {
  test("the narrowest limit of the group and those around it counts", () => {
    write({
      "proc/self/cgroup": "0::/a/b\n",
      "proc/self/mountinfo": version2,
      "sys/fs/cgroup/a/cpu.max": "150000 100000\n",
      "sys/fs/cgroup/a/b/cpu.max": "400000 100000\n",
      "sys/fs/cgroup/a/memory.max": "max\n",
      "sys/fs/cgroup/a/b/memory.max": "1000000\n",
      "sys/fs/cgroup/a/b/memory.current": "600000\n",
      "sys/fs/cgroup/a/b/memory.stat": "anon 5\ninactive_file 100000\n",
    });
    expect(groupLimits(root)).toEqual({ cores: 1.5, memoryBytes: 1_000_000, freeBytes: 500_000 });
    expect(usableThreads(root)).toBe(1);
    expect(usableMemory(root)).toEqual({ bytes: 1_000_000, freeBytes: 500_000 });
  });

  test("inside of a container the group is the root of what is mounted", () => {
    write({
      "proc/self/cgroup": "0::/\n",
      "proc/self/mountinfo": version2,
      "sys/fs/cgroup/cpu.max": "50000 100000\n",
      "sys/fs/cgroup/memory.max": "2000000\n",
    });
    expect(groupLimits(root)).toEqual({ cores: 0.5, memoryBytes: 2e6, freeBytes: 2e6 });
    // Half a core is one thread, not none.
    expect(usableThreads(root)).toBe(1);
  });

  test("no limit is none", () => {
    write({
      "proc/self/cgroup": "0::/\n",
      "proc/self/mountinfo": version2,
      "sys/fs/cgroup/cpu.max": "max 100000\n",
      "sys/fs/cgroup/memory.max": "max\n",
    });
    expect(groupLimits(root)).toEqual({ cores: null, memoryBytes: null, freeBytes: null });
    expect(usableThreads(root)).toBe(availableParallelism());
  });
});

describe("control groups of version 1", () => {
  const mounts =
    "33 24 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n" +
    "34 24 0:29 /docker/c1 /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";

  test("quota and memory, also where the mount begins at the container's own group", () => {
    write({
      "proc/self/cgroup": "5:memory:/docker/c1\n4:cpu,cpuacct:/docker/c1\n",
      "proc/self/mountinfo": mounts,
      "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
      "sys/fs/cgroup/cpu,cpuacct/docker/c1/cpu.cfs_quota_us": "100000\n",
      "sys/fs/cgroup/cpu,cpuacct/docker/c1/cpu.cfs_period_us": "50000\n",
      "sys/fs/cgroup/memory/memory.limit_in_bytes": "3000000\n",
      "sys/fs/cgroup/memory/memory.usage_in_bytes": "1000000\n",
      "sys/fs/cgroup/memory/memory.stat": "inactive_file 7\ntotal_inactive_file 250000\n",
    });
    expect(groupLimits(root)).toEqual({ cores: 2, memoryBytes: 3e6, freeBytes: 2_250_000 });
  });

  test("the largest number of pages is no limit", () => {
    write({
      "proc/self/cgroup": "5:memory:/\n4:cpu,cpuacct:/\n",
      "proc/self/mountinfo": mounts.replace("/docker/c1", "/"),
      "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
      "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
      "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    });
    expect(groupLimits(root)).toEqual({ cores: null, memoryBytes: null, freeBytes: null });
  });
});

test("a system without /proc has no limits, and threads all the same", () => {
  expect(groupLimits(root)).toEqual({ cores: null, memoryBytes: null, freeBytes: null });
  expect(usableThreads(root)).toBe(availableParallelism());
});

test("OMP_NUM_THREADS is respected; what is no number is not", () => {
  expect(standardThreads({ OMP_NUM_THREADS: "3" }, root)).toBe(3);
  expect(standardThreads({ OMP_NUM_THREADS: "4,2" }, root)).toBe(4);
  for (const text of ["", "0", "many", "-2"]) {
    expect(standardThreads({ OMP_NUM_THREADS: text }, root)).toBe(availableParallelism());
  }
});
