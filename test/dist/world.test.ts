/**
 * The variables of launchers as they document them, and the environments that are refused before
 * anything is allocated (docs/faults.md, row K3).
 */
import { describe, expect, test } from "vitest";
import { ConfigError } from "../../lib/core/errors.js";
import { describeWorld, firstHost, readWorld } from "../../lib/dist/world.js";

type Environment = Record<string, string>;

/** torchrun, rank 9 of 16 on two hosts of 8. */
const torchrun: Environment = {
  RANK: "9",
  WORLD_SIZE: "16",
  LOCAL_RANK: "1",
  LOCAL_WORLD_SIZE: "8",
  GROUP_RANK: "1",
  ROLE_RANK: "9",
  ROLE_WORLD_SIZE: "16",
  MASTER_ADDR: "node-0.cluster",
  MASTER_PORT: "29400",
  TORCHELASTIC_RUN_ID: "7f1c",
  TORCHELASTIC_RESTART_COUNT: "2",
  TORCHELASTIC_MAX_RESTARTS: "3",
};

/** A step of `srun --ntasks-per-node=8` on two nodes, task 9. */
const slurm: Environment = {
  SLURM_JOB_ID: "4200123",
  SLURM_STEP_ID: "0",
  SLURM_PROCID: "9",
  SLURM_NTASKS: "16",
  SLURM_LOCALID: "1",
  SLURM_NODEID: "1",
  SLURM_NTASKS_PER_NODE: "8",
  SLURM_STEP_TASKS_PER_NODE: "8(x2)",
  SLURM_TASKS_PER_NODE: "8(x2)",
  SLURM_STEP_NODELIST: "node[01-02]",
  SLURM_NODELIST: "node[01-02]",
  SLURM_JOB_NODELIST: "node[01-02]",
};

/** `mpirun -np 16 --map-by ppr:8:node`, rank 9. */
const openMpi: Environment = {
  OMPI_COMM_WORLD_RANK: "9",
  OMPI_COMM_WORLD_SIZE: "16",
  OMPI_COMM_WORLD_LOCAL_RANK: "1",
  OMPI_COMM_WORLD_LOCAL_SIZE: "8",
  OMPI_COMM_WORLD_NODE_RANK: "1",
  PMIX_NAMESPACE: "prterun-node01-31337@1",
  MASTER_ADDR: "10.0.0.1",
};

const ranks = { rank: 9, worldSize: 16, localRank: 1, localWorldSize: 8 };

describe("each launcher's variables", () => {
  test("torchrun", () => {
    expect(readWorld(torchrun)).toEqual({
      ...ranks,
      host: "node-0.cluster",
      port: 29_400,
      runId: "7f1c#2",
      launcher: "torchrun",
    });
  });

  test("Slurm: host and port come from the step", () => {
    expect(readWorld(slurm)).toEqual({
      ...ranks,
      host: "node01",
      port: 20_123,
      runId: "4200123.0#0",
      launcher: "Slurm",
    });
  });

  test("Open MPI", () => {
    expect(readWorld(openMpi)).toEqual({
      ...ranks,
      host: "10.0.0.1",
      port: expect.any(Number),
      runId: "prterun-node01-31337@1#0",
      launcher: "Open MPI",
    });
  });

  test("no launcher, or a lone process: nothing", () => {
    expect(readWorld({})).toBe(null);
    expect(readWorld({ MASTER_ADDR: "node", MASTER_PORT: "1" })).toBe(null);
    expect(readWorld({ RANK: "", WORLD_SIZE: "" })).toBe(null);
  });

  test("all ranks of a run say the same id, and another attempt says another", () => {
    const other = { ...torchrun, RANK: "0", LOCAL_RANK: "0" };
    expect(readWorld(other)?.runId).toBe(readWorld(torchrun)?.runId);
    const again = { ...torchrun, TORCHELASTIC_RESTART_COUNT: "3" };
    expect(readWorld(again)?.runId).not.toBe(readWorld(torchrun)?.runId);
    const requeued = { ...slurm, SLURM_RESTART_COUNT: "1" };
    expect(readWorld(requeued)?.runId).not.toBe(readWorld(slurm)?.runId);
    const nextStep = { ...slurm, SLURM_STEP_ID: "1" };
    expect(readWorld(nextStep)?.runId).not.toBe(readWorld(slurm)?.runId);
  });
});

describe("Slurm's notations", () => {
  test.each([
    ["node[01-03,07]", "node01"],
    ["node[7,01-03]", "node7"],
    ["node7", "node7"],
    ["login,node[1-4]", "login"],
    ["gpu-a[003-010]-ib", "gpu-a003-ib"],
    ["node01.cluster.local", "node01.cluster.local"],
    ["rack[1-2]n[01-04]", "rack1n01"],
    ["10.0.0.[1-4]", "10.0.0.1"],
    [" node1,node2 ", "node1"],
    ["", undefined],
    [",node1", undefined],
    ["node[01-03", undefined],
    ["node[a-c]", undefined],
  ])("the first host of %j is %j", (list, first) => {
    expect(firstHost(list)).toBe(first);
  });

  test.each([
    ["8(x2)", 1, 8],
    ["4(x2),3", 2, 3],
    ["4,2(x3),1", 3, 2],
    ["4,2(x3),1", 4, 1],
    ["6", 0, 6],
  ])("of tasks per node %s, node %i has %i", (text, node, count) => {
    const env = { ...slurm, SLURM_STEP_TASKS_PER_NODE: text, SLURM_NODEID: `${node}` };
    const world = readWorld({ ...env, SLURM_LOCALID: "0" });
    expect(world?.localWorldSize).toBe(count);
  });

  test("a step of fewer tasks than the allocation has on a node counts its own", () => {
    // The variables of older versions, for `srun --ntasks-per-node=2` under
    // `sbatch --ntasks-per-node=8`.
    const part = { ...slurm, SLURM_NTASKS: "4", SLURM_PROCID: "3", SLURM_NTASKS_PER_NODE: "8" };
    const world = readWorld({ ...part, SLURM_STEP_TASKS_PER_NODE: "2(x2)" });
    expect(world).toMatchObject({ rank: 3, worldSize: 4, localRank: 1, localWorldSize: 2 });
    expect(readWorld({ ...slurm, SLURM_STEP_TASKS_PER_NODE: "" })?.localWorldSize).toBe(8);
  });

  test("a job of one node needs no list", () => {
    const { SLURM_STEP_NODELIST, SLURM_NODELIST, SLURM_JOB_NODELIST, ...step } = slurm;
    const one = { ...step, SLURM_NTASKS: "8", SLURM_PROCID: "1", SLURM_NODEID: "0" };
    expect(readWorld(one)).toMatchObject({ host: "127.0.0.1", worldSize: 8, localWorldSize: 8 });
  });

  test("the step's own list wins over the job's, which may be longer", () => {
    const part = { ...slurm, SLURM_STEP_NODELIST: "node[03-04]", SLURM_NODELIST: "node[01-04]" };
    expect(readWorld(part)?.host).toBe("node03");
  });

  test("MASTER_ADDR and MASTER_PORT win, as the batch script set them", () => {
    const given = { ...slurm, MASTER_ADDR: "ib-node01", MASTER_PORT: "1234" };
    expect(readWorld(given)).toMatchObject({ host: "ib-node01", port: 1234 });
  });

  test.each(["batch", "4294967291", "interactive", "4294967290", "extern", "4294967292"])(
    "step %s runs no task: a process there is alone",
    (step) => {
      expect(readWorld({ ...slurm, SLURM_STEP_ID: step })).toBe(null);
    },
  );

  test("the batch script outside of any step is alone too", () => {
    const { SLURM_STEP_ID: _, ...batch } = slurm;
    expect(readWorld(batch)).toBe(null);
  });
});

describe("one launcher inside another", () => {
  test("torchrun or `launch` in a Slurm step: torchrun's count", () => {
    const inner = { ...slurm, ...torchrun, RANK: "3", WORLD_SIZE: "8", LOCAL_RANK: "3" };
    expect(readWorld(inner)).toMatchObject({ launcher: "torchrun", rank: 3, worldSize: 8 });
  });

  test("mpirun in a Slurm step: Open MPI's count", () => {
    const inner = { ...slurm, ...openMpi, OMPI_COMM_WORLD_RANK: "12" };
    expect(readWorld(inner)).toMatchObject({ launcher: "Open MPI", rank: 12 });
  });

  test("a leftover of torchrun's variables is not filled up from Slurm's", () => {
    expect(problemsOf({ ...slurm, RANK: "3" })).toEqual([
      ["WORLD_SIZE", expect.stringContaining("missing")],
      ["MASTER_ADDR", expect.stringContaining("missing")],
    ]);
  });
});

/** The mistakes, by variable. */
function problemsOf(env: Environment): [string, string][] {
  try {
    readWorld(env);
  } catch (error) {
    expect(error).toBeInstanceOf(ConfigError);
    expect((error as ConfigError).exitCode).toBe(2);
    return (error as ConfigError).problems.map(({ path, message }) => [path, message]);
  }
  return [];
}

describe("K3: what contradicts itself is refused, everything at once", () => {
  test.each<[string, Environment, [string, RegExp][]]>([
    ["RANK at WORLD_SIZE", { ...torchrun, RANK: "16" }, [["RANK", /below WORLD_SIZE=16, got 16/]]],
    [
      "LOCAL_RANK at LOCAL_WORLD_SIZE",
      { ...torchrun, LOCAL_RANK: "8" },
      [["LOCAL_RANK", /below LOCAL_WORLD_SIZE=8, got 8/]],
    ],
    [
      "more on this host than in all",
      { ...torchrun, RANK: "1", WORLD_SIZE: "4" },
      [["LOCAL_WORLD_SIZE", /8 processes on this host are more than WORLD_SIZE=4 in all/]],
    ],
    [
      "not numbers",
      { ...torchrun, RANK: "-1", WORLD_SIZE: "1e1", LOCAL_RANK: "0x1", LOCAL_WORLD_SIZE: " 8" },
      [
        ["WORLD_SIZE", /integer from 1 to 65536, got "1e1"/],
        ["RANK", /integer from 0 to 65535, got "-1"/],
        ["LOCAL_WORLD_SIZE", /got " 8"/],
        ["LOCAL_RANK", /got "0x1"/],
      ],
    ],
    ["a world of none", { ...torchrun, WORLD_SIZE: "0" }, [["WORLD_SIZE", /from 1 to/]]],
    [
      "no MASTER_ADDR over several hosts",
      { ...torchrun, MASTER_ADDR: "" },
      [["MASTER_ADDR", /missing: expected the name or address of the host of rank 0/]],
    ],
    ["an address that is none", { ...torchrun, MASTER_ADDR: "a b" }, [["MASTER_ADDR", /"a b"/]]],
    [
      "a port that is none",
      { ...torchrun, MASTER_PORT: "0" },
      [["MASTER_PORT", /from 1 to 65535/]],
    ],
    ["a port too large", { ...torchrun, MASTER_PORT: "65536" }, [["MASTER_PORT", /"65536"/]]],
    [
      "RANK alone",
      { RANK: "0" },
      [
        ["WORLD_SIZE", /missing/],
        ["MASTER_ADDR", /missing/],
      ],
    ],
    [
      "WORLD_SIZE alone",
      { WORLD_SIZE: "2" },
      [
        ["RANK", /missing/],
        ["MASTER_ADDR", /missing/],
      ],
    ],
    [
      "LOCAL_RANK alone",
      { LOCAL_RANK: "0" },
      [
        ["WORLD_SIZE", /missing/],
        ["RANK", /missing/],
        ["MASTER_ADDR", /missing/],
      ],
    ],
    [
      "Slurm: a task beyond the step",
      { ...slurm, SLURM_PROCID: "16" },
      [["SLURM_PROCID", /below SLURM_NTASKS=16, got 16/]],
    ],
    ["Slurm: no number of tasks", { ...slurm, SLURM_NTASKS: "" }, [["SLURM_NTASKS", /missing/]]],
    [
      "Slurm: tasks per node that cannot be read",
      { ...slurm, SLURM_STEP_TASKS_PER_NODE: "8(y2)" },
      [["SLURM_STEP_TASKS_PER_NODE", /expected tasks per node like 8\(x2\).*got "8\(y2\)"/]],
    ],
    [
      "Slurm: fewer nodes in the list of tasks than this one's number",
      { ...slurm, SLURM_STEP_TASKS_PER_NODE: "4,4", SLURM_NODEID: "2" },
      [["SLURM_STEP_TASKS_PER_NODE", /SLURM_NODEID=2/]],
    ],
    [
      "Open MPI over several hosts without an address",
      { ...openMpi, MASTER_ADDR: "" },
      [["MASTER_ADDR", /missing/]],
    ],
    [
      "Open MPI without its size",
      { ...openMpi, OMPI_COMM_WORLD_SIZE: "" },
      [["OMPI_COMM_WORLD_SIZE", /missing/]],
    ],
  ])("%s", (_, env, expected) => {
    const problems = problemsOf(env);
    expect(problems.map(([path]) => path).sort()).toEqual(expected.map(([path]) => path).sort());
    for (const [path, pattern] of expected) {
      expect(problems.find(([name]) => name === path)?.[1]).toMatch(pattern);
    }
  });

  test("the error names the launcher whose variables they are", () => {
    expect(() => readWorld({ ...slurm, SLURM_PROCID: "16" })).toThrow(/\(Slurm's variables\)/);
    expect(() => readWorld({ ...openMpi, MASTER_ADDR: "" })).toThrow(/\(Open MPI's variables\)/);
  });
});

describe("the port of the store", () => {
  test("jobs that share a host get ports of their own", () => {
    const ports = ["4200123", "4200124"].map(
      (id) => readWorld({ ...slurm, SLURM_JOB_ID: id })?.port,
    );
    expect(ports).toEqual([20_123, 20_124]);
  });

  test("Open MPI: all of the run's name counts, not the digits of the host's", () => {
    const names = ["prterun-node01-1234@1", "prterun-node01-1234@2", "prterun-node01-4321@1"];
    const ports = names.map((name) => readWorld({ ...openMpi, PMIX_NAMESPACE: name })?.port);
    expect(new Set(ports).size).toBe(3);
    for (const port of ports) {
      expect(port).toBeGreaterThanOrEqual(20_000);
      expect(port).toBeLessThan(30_000);
    }
    const { PMIX_NAMESPACE: _, ...older } = openMpi;
    const jobs = ["3", "4"].map((id) => readWorld({ ...older, OMPI_MCA_ess_base_jobid: id })?.port);
    expect(jobs[0]).not.toBe(jobs[1]);
  });

  test.each([
    ["29500", 29_501],
    ["32767", 32_768],
    // The system chose the agent's port and may have given the next one to a connection.
    ["32768", 22_768],
    ["65535", 25_535],
  ])("torchrun's agent serves on MASTER_PORT=%s: ours is %i", (given, port) => {
    const agent = { ...torchrun, MASTER_PORT: given, TORCHELASTIC_USE_AGENT_STORE: "True" };
    expect(readWorld(agent)?.port).toBe(port);
    const free = { ...agent, TORCHELASTIC_USE_AGENT_STORE: "False" };
    expect(readWorld(free)?.port).toBe(Number(given));
  });

  test("LLAMAFORGE_MASTER_PORT wins over what any launcher says", () => {
    const own = { LLAMAFORGE_MASTER_PORT: "1234", TORCHELASTIC_USE_AGENT_STORE: "True" };
    for (const env of [torchrun, slurm, openMpi]) {
      expect(readWorld({ ...env, ...own })?.port).toBe(1234);
    }
    expect(problemsOf({ ...torchrun, LLAMAFORGE_MASTER_PORT: "x" })).toEqual([
      ["LLAMAFORGE_MASTER_PORT", expect.stringContaining('got "x"')],
    ]);
  });
});

test("RANK and WORLD_SIZE by hand: a host each, or all on one with LOCAL_RANK", () => {
  const byHand = { RANK: "1", WORLD_SIZE: "2", MASTER_ADDR: "first" };
  expect(readWorld(byHand)).toMatchObject({ localRank: 0, localWorldSize: 1, port: 29_500 });
  expect(readWorld({ ...byHand, LOCAL_RANK: "1" })).toMatchObject({
    localRank: 1,
    localWorldSize: 2,
  });
});

test("a world in words", () => {
  expect(describeWorld({ ...ranks, host: "", port: 1, runId: "", launcher: "Slurm" })).toBe(
    "rank 9 of 16 (local 1 of 8)",
  );
});
