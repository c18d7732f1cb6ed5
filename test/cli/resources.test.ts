/** A limit of the system is not reported as a bug: no /proc, refused processes and threads. */
import { execFile } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { reportError } from "../../lib/cli/program.js";
import { ResourceError } from "../../lib/core/errors.js";
import { residentBytes } from "../../lib/core/machine-limits.js";
import { systemRefusal } from "../../lib/core/system-refusal.js";
import { buildLibrary, importOf } from "./build.js";

let folder: string;
beforeAll(() => {
  buildLibrary();
  folder = mkdtempSync(join(tmpdir(), "llamaforge-resources-"));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function run(command: string, args: string[]) {
  return new Promise<{ code: unknown; out: string; err: string }>((resolve) => {
    execFile(command, args, (error, out, err) =>
      resolve({ code: error ? error.code : 0, out, err }),
    );
  });
}

test("memory is counted and locks are told apart without /proc", async () => {
  const script = join(folder, "no-proc.mjs");
  writeFileSync(
    script,
    `import { residentBytes, usableThreads } from ${importOf("core/machine-limits.js")};
     import { mayBeAlive, thisOwner } from ${importOf("files/lock-owner.js")};
     const mine = thisOwner();
     // One process has /proc, the other has none.
     const alive = [mine, { ...mine, bootId: "b", startTime: "1" }].map(mayBeAlive);
     console.log(JSON.stringify({ rss: residentBytes() > 1e6, threads: usableThreads() > 0, bootId: mine.bootId, alive }));`,
  );
  const inside = `mount -t tmpfs none /proc && exec "$0" "$1"`;
  const { code, out, err } = await run("unshare", [
    "-rm",
    "bash",
    "-c",
    inside,
    process.execPath,
    script,
  ]);
  // A container may forbid namespaces. The parts are then tested without one.
  if (code !== 0 && /unshare|mount/.test(err)) {
    expect(residentBytes()).toBeGreaterThan(1e6);
    return;
  }
  expect(code).toBe(0);
  expect(JSON.parse(out)).toEqual({ rss: true, threads: true, bootId: null, alive: [true, true] });
}, 60_000);

test("refusals of the system end a command with 2 and say which limit to raise", () => {
  const errors = [
    Object.assign(new Error("spawn node EAGAIN"), { code: "EAGAIN", syscall: "spawn node" }),
    Object.assign(new Error("Worker initialization failure: EAGAIN"), {
      code: "ERR_WORKER_INIT_FAILED",
    }),
    Object.assign(new Error("EMFILE: too many open files, open 'x'"), { code: "EMFILE" }),
  ];
  for (const error of errors) {
    expect(systemRefusal(error)).toBeInstanceOf(ResourceError);
    expect(systemRefusal(error)?.message).toMatch(/^the system refused .*: raise the limit on/);
    expect(reportError(error)).toBe(2);
  }
  expect(systemRefusal(new Error("EAGAIN"))).toBeNull();
}, 60_000);
