import { randomUUID } from "node:crypto";
import { open, readdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { UsageError } from "../../lib/core/errors.js";
import { acquireLock } from "../../lib/files/lock.js";
import { thisOwner } from "../../lib/files/lock-owner.js";
import { temporaryFolder } from "./support.js";

/** A process from before the machine's last start. */
const dead = JSON.stringify({ ...thisOwner(), bootId: "another" });

async function lockPath(): Promise<{ folder: string; path: string }> {
  const folder = await temporaryFolder();
  return { folder, path: join(folder, "out.lock") };
}

describe("the lock of a data set", () => {
  it("names its process, and is gone when released", async () => {
    const { folder, path } = await lockPath();
    const lock = await acquireLock(path, "the folder");
    expect(JSON.parse(await readFile(path, "utf8")).pid).toBe(process.pid);
    expect(await readdir(folder)).toEqual(["out.lock"]);
    await lock.release();
    expect(await readdir(folder)).toEqual([]);
  });

  it("takes a dead process's, and sweeps up what killed ones left: empty, half or whole", async () => {
    const { folder, path } = await lockPath();
    await writeFile(path, dead);
    await writeFile(`${path}.taking`, dead);
    await writeFile(`${path}.taking.taking`, dead);
    for (const content of ["", dead.slice(0, 9), dead]) {
      await writeFile(`${path}.${randomUUID()}`, content);
    }
    const lock = await acquireLock(path, "the folder");
    expect(await readdir(folder)).toEqual(["out.lock"]);
    await lock.release();
  });

  it("sweeps up after one that was killed when it had removed a dead one's", async () => {
    const { folder, path } = await lockPath();
    await writeFile(`${path}.taking`, dead);
    await writeFile(`${path}.taking.${randomUUID()}`, "");
    const lock = await acquireLock(path, "the folder");
    expect(await readdir(folder)).toEqual(["out.lock"]);
    await lock.release();
  });

  it("leaves what is not its own: a living process's draft, and other files", async () => {
    const { folder, path } = await lockPath();
    const living = `${path}.${randomUUID()}`;
    await writeFile(living, JSON.stringify(thisOwner()));
    await writeFile(`${path}.bak`, "");
    const lock = await acquireLock(path, "the folder");
    await lock.release();
    expect(await readdir(folder)).toEqual([living.slice(folder.length + 1), "out.lock.bak"].sort());
  });

  it("is held by one of many at a time, and every other is told of it", async () => {
    const { folder, path } = await lockPath();
    const held = join(folder, "held");
    /** The lock of a dead process, ready to replace that of a living one. */
    const corpse = async (): Promise<string> => {
      const file = join(folder, `corpse-${randomUUID()}`);
      await writeFile(file, dead);
      return file;
    };
    let taken = 0;
    const worker = async (): Promise<void> => {
      for (let attempt = 0; attempt < 60; attempt++) {
        try {
          const lock = await acquireLock(path, "the folder");
          taken++;
          // Fails if the file exists, because then two processes held the lock.
          await (await open(held, "wx")).close();
          await rm(held);
          // Every other time the process dies instead, and the next one must take over its lock.
          if (attempt % 2 === 0) await lock.release();
          else await rename(await corpse(), path);
        } catch (error) {
          if (!(error instanceof UsageError)) throw error;
          expect(error.message).toContain(`the folder is in use by process ${process.pid}`);
        }
      }
    };
    await Promise.all(Array.from({ length: 8 }, worker));
    expect(taken).toBeGreaterThanOrEqual(8);
    await (await acquireLock(path, "the folder")).release();
    expect(await readdir(folder)).toEqual([]);
  });
});
