// docs/faults.md, rows C9 and C10: an output folder has one run, and an unusable folder is refused
// before step 0.
import {
  chmodSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from "vitest";
import { acquireRunLock, prepareOutputFolder } from "../../lib/checkpoint/lock.js";
import { UsageError } from "../../lib/core/errors.js";
import { createHarness, type Harness, temporaryFolder } from "../checkpoint/support/harness.js";

let harness: Harness;
let folder: ReturnType<typeof temporaryFolder>;
beforeAll(() => {
  harness = createHarness();
});
afterAll(() => harness.remove());
beforeEach(() => {
  folder = temporaryFolder();
});
afterEach(() => folder.remove());

test("a second run in the folder is refused with exit code 2, naming the first", async () => {
  const lock = acquireRunLock(folder.path);
  expect(lock.takenOverFrom).toBeNull();
  const second = await harness.run("lock-child", [folder.path, "release"]);
  expect(second.code).toBe(2);
  expect(second.lines[0]).toMatch(/^UsageError .*in use by another run/);
  expect(second.lines[0]).toContain(`process ${process.pid} on`);
  // Two trainers of one process count as two runs.
  expect(() => acquireRunLock(folder.path)).toThrow(UsageError);
  lock.release();
  lock.release();
  const third = await harness.run("lock-child", [folder.path, "release"]);
  expect(third).toMatchObject({ code: 0, lines: ["locked fresh"] });
  acquireRunLock(folder.path).release();
});

test("the lock names its process by pid, boot and start time", () => {
  const lock = acquireRunLock(folder.path);
  const owner = JSON.parse(readFileSync(join(folder.path, "run.lock"), "utf8"));
  expect(owner).toMatchObject({ pid: process.pid });
  expect(owner.bootId).toMatch(/^[0-9a-f-]{36}$/);
  expect(owner.startTime).toMatch(/^\d+$/);
  lock.release();
});

test("the lock of a killed run is taken over, and that is said", async () => {
  const killed = await harness.run("lock-child", [folder.path, "die"]);
  expect(killed.signal).toBe("SIGKILL");
  const lock = acquireRunLock(folder.path);
  expect(lock.takenOverFrom).toMatch(/^process \d+ on .* since 20/);
  lock.release();
});

test("a damaged lock file does not stand in the way", () => {
  for (const text of ["", "{", "null", "[]", '{"pid":"x"}', "\0\0\0"]) {
    writeFileSync(join(folder.path, "run.lock"), text);
    const lock = acquireRunLock(folder.path);
    expect(lock.takenOverFrom).toBeNull();
    lock.release();
  }
});

test("without file locks, the text decides: alive is refused; dead, reused or rebooted is taken over", async () => {
  const noLocks = { FAULT_NO_FLOCK: "1" };
  const mine = acquireRunLock(folder.path);
  const text = readFileSync(join(folder.path, "run.lock"), "utf8");
  mine.release();
  const attempt = async (change: object) => {
    const owner = { ...JSON.parse(text), ...change };
    writeFileSync(join(folder.path, "run.lock"), JSON.stringify(owner));
    return await harness.run("lock-child", [folder.path, "release"], noLocks);
  };
  expect((await attempt({})).code).toBe(2);
  expect((await attempt({ host: "elsewhere" })).code).toBe(2);
  expect((await attempt({ startTime: "1" })).code).toBe(0);
  expect((await attempt({ pid: 4194304 })).code).toBe(0);
  expect((await attempt({ bootId: "another" })).code).toBe(0);
});

test("a lock that is a link is refused", () => {
  writeFileSync(join(folder.path, "victim"), "precious");
  symlinkSync("victim", join(folder.path, "run.lock"));
  expect(() => acquireRunLock(folder.path)).toThrow(/cannot be locked: .*a symbolic link/);
  expect(readFileSync(join(folder.path, "victim"), "utf8")).toBe("precious");
});

test("an output folder is made, used again, and left as it was", async () => {
  const path = join(folder.path, "run");
  await prepareOutputFolder(path);
  writeFileSync(join(path, "kept"), "");
  await prepareOutputFolder(path);
  expect(readdirSync(path)).toEqual(["kept"]);
  await prepareOutputFolder(join(folder.path, "a", "b", "c"), { parents: true });
  expect(readdirSync(join(folder.path, "a", "b"))).toEqual(["c"]);
});

function fileAt(path: string): string {
  writeFileSync(path, "");
  return path;
}

function linkAt(path: string, target: string): string {
  symlinkSync(target, path);
  return path;
}

test.each([
  [
    "has no parent",
    (at: string) => join(at, "none", "run"),
    /its parent .*none is not an existing folder/,
  ],
  ["is a file", (at: string) => fileAt(join(at, "run")), /it is a file/],
  [
    "is below a file",
    (at: string) => join(fileAt(join(at, "file")), "run"),
    /cannot be used: (its parent|ENOTDIR)/,
  ],
  [
    "is a link to a folder",
    (at: string) => {
      mkdirSync(join(at, "real"));
      return linkAt(join(at, "run"), "real");
    },
    /it is a symbolic link/,
  ],
  [
    "is a dangling link",
    (at: string) => linkAt(join(at, "run"), "nowhere"),
    /it is a symbolic link/,
  ],
  ["is on a read-only file system", () => "/proc/llamaforge-run", /cannot be used: /],
  ["has a name that is too long", (at: string) => join(at, "x".repeat(300)), /ENAMETOOLONG/],
])("an output folder that %s is a usage error", async (_what, make, message) => {
  const path = make(folder.path);
  const error = await prepareOutputFolder(path).then(
    () => null,
    (thrown: unknown) => thrown,
  );
  expect(error).toBeInstanceOf(UsageError);
  expect((error as UsageError).exitCode).toBe(2);
  expect((error as Error).message).toMatch(message);
});

// Root may write to any folder on a disk, but not make files in sysfs.
test("an output folder without write permission is a usage error", async () => {
  const path = join(folder.path, "run");
  mkdirSync(path);
  chmodSync(path, 0o500);
  if (process.getuid?.() === 0) {
    await expect(prepareOutputFolder("/sys/kernel")).rejects.toThrow(
      /cannot be used: .*(EACCES|EPERM|EROFS)/,
    );
  } else {
    await expect(prepareOutputFolder(path)).rejects.toThrow(/cannot be used: .*EACCES/);
  }
  chmodSync(path, 0o700);
});
