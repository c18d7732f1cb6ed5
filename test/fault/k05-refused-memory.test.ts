// docs/faults.md, rows K5 and K6: the system refuses memory, by a real limit on the address space.
// Errors are typed, nothing crashes, and no memory is held back.
import { execFile } from "node:child_process";
import { beforeAll, describe, expect, test } from "vitest";
import { zeros } from "../../lib/core/create.js";
import { OutOfMemoryError } from "../../lib/core/errors.js";
import { buildLibrary, importOf } from "../cli/build.js";

beforeAll(buildLibrary);

/** Runs a program in a process with a limit on its address space, in kilobytes. */
function limited(
  kilobytes: number,
  program: string,
  environment: Record<string, string> = {},
): Promise<{ code: number | string | null; out: string; err: string }> {
  const text = `import * as lf from ${importOf("index.js")};\n${program}`;
  const command = `ulimit -v ${kilobytes}; exec "$0" --input-type=module -e "$1"`;
  const env = { ...process.env, LLAMAFORGE_THREADS: "2", ...environment };
  return new Promise((resolve) => {
    execFile("bash", ["-c", command, process.execPath, text], { env }, (error, out, err) => {
      resolve({ code: error ? (error.signal ?? error.code ?? null) : 0, out, err });
    });
  });
}

test.each([
  ["toArray", { dtype: "f32" as const }],
  ["toArray", { dtype: "bf16" as const }],
  ["toBytes", { dtype: "i32" as const }],
])(
  "%s of more than the machine has is an error that says how much: %j",
  async (method, options) => {
    for (const size of [2 ** 40, 2 ** 47]) {
      const x = zeros([size], options);
      const error = await (method === "toArray" ? x.toArray() : x.toBytes()).catch((e) => e);
      expect(error).toBeInstanceOf(OutOfMemoryError);
      expect(error.message).toMatch(/the system refused \d{13,} bytes/);
      x.dispose();
    }
    // The failure belongs to these tensors and not to the next one.
    expect(Array.from(await zeros([2]).toArray())).toEqual([0, 0]);
  },
);

/**
 * Takes memory until none is left, then computes: first with all of it held, then with all
 * released.
 */
const exhaust = `
  const kept = [];
  let failure = null;
  const attempt = async (work) => {
    try {
      return await work();
    } catch (error) {
      if (!(error instanceof lf.OutOfMemoryError)) throw error;
      failure ??= error;
      return null;
    }
  };
  while (failure === null) {
    const x = lf.ones([1 << 20]);
    await attempt(() => lf.synchronize());
    kept.push(x);
  }
  const product = () => lf.scope(async () => {
    const values = await lf.matmul(lf.ones([512, 300]), lf.ones([300, 512])).toArray();
    return [values[0], values.at(-1)];
  });
  const held = await attempt(product);
  for (const x of kept) x.dispose();
  await lf.synchronize();
  const cached = lf.memory().cachedBytes;
  console.log(JSON.stringify({ kept: kept.length, message: failure.message, held, cached, product: await product() }));
`;

describe("after a refusal", () => {
  // Each limit runs out at a different place.
  test.each([1_700_000, 1_733_000, 1_750_000])(
    "%i kB: products work, and nothing is kept",
    async (kilobytes) => {
      const { code, out, err } = await limited(kilobytes, exhaust);
      expect({ code, err }).toEqual({ code: 0, err: "" });
      const { kept, message, held, cached, product } = JSON.parse(out);
      expect(kept).toBeGreaterThan(4);
      expect(message).toMatch(/\[fill\] .*the system refused \d+ bytes; \d+ are in use/);
      if (held !== null) expect(held).toEqual([300, 300]);
      expect(cached).toBe(0);
      expect(product).toEqual([300, 300]);
    },
    60_000,
  );
});

test("threads that the system refuses are an error that says what to change", async () => {
  const program = `await lf.zeros([2]).toArray().catch((e) => console.log(e.name, e.code, e.exitCode, e.message));
    try { lf.zeros([2]); } catch (e) { console.log(e.name, e.code, e.exitCode, e.message); }`;
  const { code, out, err } = await limited(
    4_000_000,
    `try { ${program} } catch (e) { console.log(e.name, e.code, e.exitCode, e.message); }`,
    {
      LLAMAFORGE_THREADS: "1000",
    },
  );
  expect({ code, err }).toEqual({ code: 0, err: "" });
  expect(out).toMatch(
    /^ResourceError ERR_RESOURCE 2 \[threads\] the system let \d+ of 1000 threads start/,
  );
  expect(out).toContain("LLAMAFORGE_THREADS");
}, 60_000);
