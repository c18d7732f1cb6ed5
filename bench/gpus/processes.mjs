// Starts the processes of a run of several ranks on this host; each of them runs rank.mjs.
import { execFileSync, spawn } from "node:child_process";
import { fileURLToPath } from "node:url";
import { freePort } from "../../dist/dist/free-port.js";

const rankFile = fileURLToPath(new URL("rank.mjs", import.meta.url));
const nativeFile = new URL("../../dist/core/native.js", import.meta.url).href;

/**
 * Describes the visible GPUs. A child process asks, so that this process holds no memory on a GPU.
 */
export function gpusOfHost() {
  const program = `const { cudaInfo } = await import(${JSON.stringify(nativeFile)});
    const { driver, devices } = cudaInfo();
    console.log(JSON.stringify({ gpus: devices.length, name: devices[0]?.name, driver }));`;
  const text = execFileSync(process.execPath, ["--input-type=module", "-e", program], {
    encoding: "utf8",
  });
  return JSON.parse(text.trim().split("\n").at(-1));
}

export class RankProcesses {
  #gpus;
  #settings;

  /**
   * @param gpus number of this host's GPUs for the ranks; ranks share if there are fewer GPUs.
   *   0: ranks compute on the CPU
   * @param settings passed to rank.mjs in GPUS_BENCH
   */
  constructor(gpus, settings) {
    this.#gpus = gpus;
    this.#settings = settings;
  }

  /** Whether this many ranks share GPUs. */
  share(ranks) {
    return this.#gpus > 0 && ranks > this.#gpus;
  }

  async start(ranks, more = {}) {
    const port = await freePort();
    return Array.from({ length: ranks }, (_, rank) => {
      const torchrun = {
        RANK: rank,
        LOCAL_RANK: rank,
        WORLD_SIZE: ranks,
        LOCAL_WORLD_SIZE: ranks,
        MASTER_ADDR: "127.0.0.1",
        MASTER_PORT: port,
        TORCHELASTIC_RUN_ID: `bench-${port}`,
      };
      const child = spawn(process.execPath, [rankFile], {
        stdio: ["ignore", "pipe", "pipe"],
        env: {
          ...process.env,
          ...(ranks > 1 && torchrun),
          ...(this.share(ranks) && this.#sharing(rank)),
          GPUS_BENCH: JSON.stringify({ ...this.#settings, ...more }),
        },
      });
      return listen(child);
    });
  }

  /** Runs to the end. @throws if a rank fails, with the output of all ranks */
  async run(ranks, more = {}) {
    const started = performance.now();
    const ended = await Promise.all((await this.start(ranks, more)).map((rank) => rank.ended));
    if (ended.some(({ code, result }) => code !== 0 || !result)) {
      const all = ended.map(({ code, signal, said }) => `${code ?? signal}: ${said}`).join("\n");
      throw new Error(`a rank failed (${JSON.stringify(more)}):\n${all}`);
    }
    const results = ended.map(({ result }) => result);
    const [first] = results;
    /** Whether all ranks have equal losses and weights. */
    const alike = results.every(
      ({ weights, losses }) =>
        weights === first.weights && losses.every((loss, i) => loss === first.losses[i]),
    );
    return { results, first, alike, seconds: (performance.now() - started) / 1000 };
  }

  /**
   * Makes NCCL take ranks that share a GPU for ranks of several hosts, with its sockets as the
   * network between them.
   */
  #sharing(rank) {
    return { CUDA_VISIBLE_DEVICES: String(rank % this.#gpus), NCCL_HOSTID: `rank-${rank}` };
  }
}

/**
 * Collects the output of a rank: its result and other text. `onStep` is called for each step that
 * has ended.
 */
function listen(child) {
  const told = { child, onStep: () => {}, result: null, said: "" };
  let rest = "";
  child.stdout.setEncoding("utf8").on("data", (text) => {
    const lines = (rest + text).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      // NCCL_DEBUG also writes to stdout.
      const value = line.startsWith("{") ? JSON.parse(line) : null;
      if (!value) told.said += `${line}\n`;
      else if (value.step) told.onStep(value.step);
      else told.result = value;
    }
  });
  child.stderr.setEncoding("utf8").on("data", (text) => {
    told.said += text;
  });
  told.ended = new Promise((resolve) => {
    child.on("close", (code, signal) => resolve({ ...told, code, signal }));
  });
  return told;
}
