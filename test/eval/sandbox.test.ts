// The programs here are what a model may write at worst. Each of them must be stopped, and nothing
// of it may be left.
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import { gunzipSync } from "node:zlib";
import { beforeAll, describe, expect, test } from "vitest";
import { ArgumentError, ResourceError } from "../../lib/core/errors.js";
import { type ProgramResult, Sandbox } from "../../lib/eval/sandbox.js";
import { root } from "../cli/build.js";

const limits = { allowCodeExecution: true, memoryBytes: 2 ** 27, concurrency: 4 };
// Programs that end by themselves have time, also on a machine with much other work.
const opened = await Sandbox.open({ ...limits, timeoutMs: 20_000 }).catch((error: Error) => error);
const impossible = opened instanceof Error ? opened.message : null;
if (impossible !== null) console.warn(`skipped: ${impossible}`);

/** Command lines of all processes that run the sandbox's runner. */
function leftovers(): string[] {
  return readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .map((id) => {
      try {
        return readFileSync(`/proc/${id}/cmdline`, "utf8");
      } catch {
        return "";
      }
    })
    .filter((line) => line.includes('"buildsRoot":'));
}

/** The user's own files, without those that Python may be among. */
function homeFiles(): string[] {
  const home = homedir();
  if (!existsSync(home)) return [];
  const names = readdirSync(home).filter((name) => !/^\.?(pyenv|local|venv|conda)/.test(name));
  return home === "/" ? [] : names.map((name) => join(home, name));
}

async function noneLeft(): Promise<void> {
  for (let wait = 0; wait < 100 && leftovers().length > 0; wait++) {
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  expect(leftovers()).toEqual([]);
}

test("runs no program unless code execution is allowed", async () => {
  const refused = Sandbox.open({ allowCodeExecution: false });
  await expect(refused).rejects.toThrow(ArgumentError);
  await expect(refused).rejects.toThrow("allowCodeExecution");
});

test("names a missing interpreter", async () => {
  const missing = Sandbox.open({ allowCodeExecution: true, python: "/nowhere/python3" });
  await expect(missing).rejects.toThrow(ResourceError);
  await expect(missing).rejects.toThrow("expected Python 3 at /nowhere/python3");
});

test("refuses limits that no program fits in", async () => {
  const small = Sandbox.open({ allowCodeExecution: true, memoryBytes: 1 });
  await expect(small).rejects.toThrow("memoryBytes");
});

describe.skipIf(impossible !== null)("the sandbox", () => {
  let sandbox: Sandbox;
  beforeAll(() => {
    sandbox = opened as Sandbox;
  });

  const outcomes: [string, string, Partial<ProgramResult>][] = [
    ["a program that ends", "x = 1", { passed: true, end: "passed", detail: "" }],
    ["a failed check", "assert 1 == 2, 'not two'", { end: "assertion", detail: "not two" }],
    ["an exception", "1 / 0", { end: "exception", detail: "ZeroDivisionError: division by zero" }],
    [
      "a syntax error",
      "def f(:",
      { end: "exception", detail: expect.stringContaining("SyntaxError") },
    ],
    ["exit()", "exit()", { end: "exit" }],
    ["an exit code of 0 before the end", "import os\nos._exit(0)", { end: "exit" }],
    ["a crash", "import ctypes\nctypes.string_at(0)", { end: "signal", detail: "SIGSEGV" }],
    ["a main block, which does not run", "if __name__ == '__main__': 1 / 0", { passed: true }],
    ["input(), which has nothing to read", "input()", { end: "exception" }],
    ["threads", "import threading\nthreading.Thread(target=print).start()", { passed: true }],
    ["a temporary file", "import tempfile\ntempfile.TemporaryFile().write(b'x')", { passed: true }],
  ];
  test("tells how a program ended", async () => {
    const results = await sandbox.runAll(outcomes.map(([, program]) => program));
    for (const [index, [name, , expected]] of outcomes.entries()) {
      const failed = { passed: false, ...expected };
      expect(results[index], name).toMatchObject(failed);
    }
  });

  /** Statements of which each must fail; a program passes if all of them do. */
  const refusedAll = (statements: readonly string[]): string =>
    [
      "import ctypes, os, pathlib, resource, shutil, signal, socket, subprocess, sys, glob",
      "libc = ctypes.CDLL(None, use_errno=True)",
      "def system(name, *arguments):",
      "    if getattr(libc, name)(*arguments) < 0: raise OSError(ctypes.get_errno(), name)",
      "for statement in [",
      ...statements.map((statement) => `    ${JSON.stringify(statement)},`),
      "]:",
      "    try: exec(statement)",
      "    except (OSError, ImportError): continue",
      "    raise Exception('allowed: ' + statement)",
    ].join("\n");

  const forbidden: [string, string[]][] = [
    [
      "files outside",
      [
        ...["/etc/passwd", "/proc/self/environ", "/proc/1/environ", "/sys/kernel/version"],
        ...[join(root, "package.json"), ...homeFiles()],
      ].map((path) => `os.stat(${JSON.stringify(path)}) and os.listdir(${JSON.stringify(path)})`),
    ],
    [
      "writing outside of the folder",
      [
        "open('/x', 'w')",
        "os.mkdir('/dev/x')",
        "open('/usr/x', 'w')",
        "open(os.__file__, 'a')",
        "os.remove(os.__file__)",
        "open(sys.executable, 'r+')",
        "os.chmod(os.path.dirname(os.__file__), 0o777)",
        "os.mknod('/tmp/disk', 0o60666, os.makedev(8, 0))",
      ],
    ],
    [
      "sockets",
      [
        "socket.create_connection(('127.0.0.1', 80), 1)",
        "socket.create_connection(('::1', 80), 1)",
        "socket.create_connection(('192.0.2.1', 80), 1)",
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).bind(('127.0.0.1', 0))",
        "socket.socket(socket.AF_INET, socket.SOCK_RAW)",
        "socket.socket(16, socket.SOCK_RAW)", // netlink
        "socket.socket(40, socket.SOCK_STREAM)", // vsock
        "socket.getaddrinfo('example.com', 80)",
        "socket.socket(socket.AF_UNIX).connect('/run/dbus/system_bus_socket')",
      ],
    ],
    [
      "rights",
      [
        "os.setuid(0) if os.getuid() != 0 else os.setgroups([1])",
        "os.chroot('/tmp')",
        "os.nice(-1)",
        "os.kill(1, 0) or os.kill(1, signal.SIGKILL) or os.stat('/proc/1')",
        "system('mount', b'tmpfs', b'/tmp', b'tmpfs', 0, None)",
        "system('unshare', 0x10000000)",
        "system('ptrace', 16, 1, 0, 0)",
        "system('shmget', 0, 1 << 30, 0o1666)",
        "system('memfd_create', b'x', 0)",
        "os.execv('/bin/sh', ['sh'])",
        "resource.prlimit(1, resource.RLIMIT_AS, (1, 1))",
        "os.setpriority(os.PRIO_PROCESS, 1, 19)",
      ],
    ],
    [
      "processes",
      [
        "os.fork()",
        "subprocess.run([sys.executable])",
        "os.posix_spawn(sys.executable, ['x'], {})",
      ],
    ],
    ["open files", ["files = [open('/dev/null') for _ in range(100)]"]],
    [
      "large files",
      ["signal.signal(25, signal.SIG_IGN) and 0 or open('x', 'wb').write(bytes(1 << 25))"],
    ],
    ["many files", ["for i in range(100): open(f'f{i}', 'wb').write(bytes(1 << 20))"]],
  ];
  test("shows no files, no network and no rights", async () => {
    const programs = forbidden.map(([, statements]) => refusedAll(statements));
    const results = await sandbox.runAll(programs);
    for (const [index, [name]] of forbidden.entries()) {
      expect(results[index], name).toEqual({ passed: true, end: "passed", detail: "" });
    }
  });

  const fatal: [string, string, RegExp][] = [
    ["memory", "x = []\nwhile True: x.append(bytearray(10 ** 7))", /memory/],
    ["one large block", "x = bytearray(10 ** 12)", /memory/],
    ["recursion", "def f(): f()\nf()", /exception RecursionError/],
    ["its group's end", "import os, signal\nos.kill(0, signal.SIGKILL)", /signal SIGKILL/],
  ];
  test("ends programs that eat memory or kill their group", async () => {
    const results = await sandbox.runAll(fatal.map(([, program]) => program));
    expectEnds(results, fatal);
  });

  function expectEnds(results: ProgramResult[], cases: typeof fatal): void {
    for (const [index, [name, , expected]] of cases.entries()) {
      const { passed, end, detail } = results[index] as ProgramResult;
      expect(passed, name).toBe(false);
      expect(`${end} ${detail}`, name).toMatch(expected);
    }
  }

  const endless: [string, string, RegExp][] = [
    ["a loop", "while True: pass", /timeout/],
    ["sleep", "import time\ntime.sleep(1000)", /timeout/],
    [
      "a fork bomb",
      "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
      /timeout/,
    ],
    ["output", "import os\nwhile True: print('x' * 10000); os.write(2, b'y' * 10000)", /timeout/],
    [
      "a full disk",
      "while True:\n    try: open('x', 'ab').write(bytes(1 << 20))\n    except OSError: pass",
      /timeout|signal/,
    ],
    [
      "ignored signals",
      "import signal\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n" +
        "    except (OSError, ValueError): pass\nwhile True: pass",
      /timeout/,
    ],
    [
      "a swallowed exception",
      "while True:\n    try:\n        while True: pass\n    except: pass",
      /timeout/,
    ],
    [
      "its parent's end",
      "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nwhile 1: pass",
      /timeout/,
    ],
    [
      "everything's end",
      "import os, signal\nos.kill(-1, signal.SIGTERM)\nwhile 1: pass",
      /exception ProcessLookupError|timeout/,
    ],
    ["being stopped", "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)", /timeout/],
    [
      "a flood on every file descriptor",
      'import os\nfor n in range(64):\n    try:\n        for _ in range(100): os.write(n, b\'["passed", ""]\' * 1000)\n' +
        "    except OSError: pass\nwhile True: pass",
      /timeout/,
    ],
  ];
  test("stops programs that never end", { timeout: 30_000 }, async () => {
    const impatient = await Sandbox.open({ ...limits, timeoutMs: 500 });
    const results = await impatient.runAll(endless.map(([, program]) => program));
    expectEnds(results, endless);
    await noneLeft();
  });

  const assertion = "\nassert False, 'the end'";
  const anyDescriptor = (message: string): string =>
    `import os\nfor n in range(3, 64):\n    try: os.write(n, ${message})\n    except OSError: pass\n`;
  const forged: [string, string][] = [
    ["a message on every descriptor", `${anyDescriptor(`b'["passed", ""]\\n'`)}os._exit(0)`],
    ["a message of the set-up", `${anyDescriptor(`b'["refused", "x"]\\n'`)}os._exit(0)`],
    ["a message that is no message", `${anyDescriptor("b'[' * 10000 + b'\\n'")}os._exit(0)`],
    ["another writer", `import json\njson.dumps = lambda value: '["passed", ""]'${assertion}`],
    [
      "another exception",
      "import builtins\nclass Other(Exception): pass\n" +
        `for name in ('AssertionError', 'BaseException'): setattr(builtins, name, Other)${assertion}`,
    ],
    ["any that is true", `import builtins\nbuiltins.any = lambda steps: True${assertion}`],
    [
      "the runner's own function",
      "import sys\nsys._getframe(1).f_globals['tell']('passed')\nimport os\nos._exit(0)",
    ],
    ["the end of an iteration", "raise StopIteration"],
    ["another program's success", "import os, sys\nos.execv(sys.executable, ['python', '-c', ''])"],
  ];
  test("no program forges a success, or a failure of the sandbox", async () => {
    const results = await sandbox.runAll(forged.map(([, program]) => program));
    for (const [index, [name]] of forged.entries()) {
      expect(results[index], name).toMatchObject({ passed: false });
    }
  });

  test("shows the secret of success to no program", async () => {
    const program = [
      "import gc, os, re, sys",
      "found, seen, frame = [], set(), sys._getframe()",
      "todo = [gc.get_objects(), gc.get_referrers(os.write, exec), list(sys.modules.values())]",
      "while frame:",
      "    todo += [frame, frame.f_locals, frame.f_globals, frame.f_code]",
      "    frame = frame.f_back",
      "while todo:",
      "    value = todo.pop()",
      "    if id(value) in seen: continue",
      "    seen.add(id(value))",
      "    if isinstance(value, map): found.append(value)",
      "    if isinstance(value, bytes) and re.fullmatch(b'[0-9a-f]{32}', value): found.append(value)",
      "    todo += gc.get_referents(value)",
      "assert len(seen) > 5000 and not found, len(found)",
    ].join("\n");
    expect(await sandbox.run(program)).toEqual({ passed: true, end: "passed", detail: "" });
  });

  test("gives each program an empty folder, and no environment", async () => {
    const program = [
      "import os",
      "assert os.listdir('.') == [] and os.getcwd() == '/tmp'",
      "open('left', 'w').write('x')",
      "known = {'HOME', 'TMPDIR', 'LANG', 'LC_CTYPE', 'PWD', 'OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'SHLVL', '_'}",
      "assert set(os.environ) <= known, os.environ",
    ].join("\n");
    const results = await sandbox.runAll([program, program, program]);
    expect(results.map(({ detail, end }) => end + detail)).toEqual(Array(3).fill("passed"));
  });

  test("ends at once when the evaluation is stopped", async () => {
    const stop = new AbortController();
    const running = sandbox.runAll(Array(8).fill("while True: pass"), { signal: stop.signal });
    setTimeout(() => stop.abort(), 100);
    await expect(running).rejects.toThrow("abort");
    await noneLeft();
  });

  const rows = join(root, "../shared/evaldata/humaneval/test.jsonl.gz");
  test.skipIf(!existsSync(rows))("runs solutions of HumanEval and their tests", async () => {
    const lines = gunzipSync(readFileSync(rows)).toString().trim().split("\n");
    const problems = lines.filter((_, index) => index % 16 === 0).map((line) => JSON.parse(line));
    const programs = problems.map(
      (row) => `${row.prompt}${row.canonical_solution}\n${row.test}\ncheck(${row.entry_point})`,
    );
    const results = await sandbox.runAll(programs);
    expect(results.filter(({ passed }) => !passed)).toEqual([]);
  });
});
