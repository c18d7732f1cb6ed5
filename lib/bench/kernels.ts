import { UsageError } from "../core/errors.js";
import { native } from "../core/native.js";
import { scope } from "../core/scope.js";
import { peakOf } from "../plan/flops.js";
import { describeDevice } from "../train/machine.js";
import { copyRate } from "./copy-rate.js";
import { type BenchEnvironment, benchEnvironment } from "./environment.js";
import { type KernelCase, type KernelShapes, Workbench } from "./kernel-case.js";
import { elementwiseKernels } from "./kernels-elementwise.js";
import { trainingKernels } from "./kernels-training.js";
import { timeCalls } from "./measure.js";

export interface KernelsOptions extends KernelShapes {
  modelName: string;
  /** Only kernels whose group or name contains this text, in any case. */
  only?: string;
  /** Timed runs of a kernel; the result is their median. */
  runs: number;
  onProgress?: (message: string) => void;
}

export interface KernelRow {
  group: string;
  name: string;
  microseconds: number;
  /**
   * Minimum of bytes moved, or floating-point operations; both null if only the latency is
   * measured.
   */
  bytes: number | null;
  flops: number | null;
  gigabytesPerSecond: number | null;
  tflops: number | null;
  /**
   * Floor over time. At 1, the kernel is as fast as the device's measured copy, or its product of
   * large square matrices.
   */
  ratio: number | null;
}

export interface KernelsResult extends BenchEnvironment {
  benchmark: "kernels";
  model: string;
  run: { microBatch: number; sequenceLength: number; precision: "bf16" | "fp32"; runs: number };
  /**
   * The rates that the floors are computed from, measured in this run, and the data sheet's peak if
   * known.
   */
  rates: {
    copyGigabytesPerSecond: number;
    productTflops: number;
    productSize: number;
    dataSheetTflops: number | null;
  };
  rows: KernelRow[];
}

/** Rows and columns of the square product. */
const productSize = { cpu: 2048, cuda: 8192 };

/** Minimum length of a timed run in milliseconds. */
const leastMs = { cpu: 20, cuda: 30 };

/** Times every kernel of a training step and the element-wise kernels, next to their floors. */
export async function benchKernels(options: KernelsOptions): Promise<KernelsResult> {
  const { device, precision, microBatch, sequenceLength, runs, onProgress = () => {} } = options;
  const name = await describeDevice(device);
  const bench = new Workbench(options);
  const cases = select([...trainingKernels(bench), ...elementwiseKernels(bench)], options.only);
  const timing = { device, runs, leastMs: leastMs[device.type] };
  const time = async (prepare: () => () => void): Promise<number> =>
    await scope(async () => await timeCalls(prepare(), timing));
  onProgress(`${options.modelName} on ${name}: ${cases.length} kernels`);
  const size = productSize[device.type];
  const copy = () => copyRate(device, precision, runs);
  const copyBefore = await copy();
  const productRate = (2 * size ** 3) / (await time(squareProduct(bench, size)));
  const measured: { kernel: KernelCase; seconds: number }[] = [];
  for (const kernel of cases) {
    const seconds = await time(kernel.prepare);
    onProgress(`${kernel.name}: ${(1e6 * seconds).toFixed(1)} us`);
    measured.push({ kernel, seconds });
  }
  const copied = Math.max(copyBefore, await copy());
  return {
    benchmark: "kernels",
    ...benchEnvironment(device, name),
    model: options.modelName,
    run: { microBatch, sequenceLength, precision, runs },
    rates: {
      copyGigabytesPerSecond: copied / 1e9,
      productTflops: productRate / 1e12,
      productSize: size,
      dataSheetTflops: (precision === "bf16" && peakOf(name)?.tflops) || null,
    },
    rows: measured.map(({ kernel, seconds }) => row(kernel, seconds, copied, productRate)),
  };
}

function select(cases: KernelCase[], only: string | undefined): KernelCase[] {
  if (only === undefined) return cases;
  const wanted = only.toLowerCase();
  const chosen = cases.filter(({ group, name }) =>
    `${group}: ${name}`.toLowerCase().includes(wanted),
  );
  if (chosen.length === 0) {
    const names = cases.map(({ group, name }) => `  ${group}: ${name}`).join("\n");
    throw new UsageError(`--only ${only} is part of no kernel's name:\n${names}`);
  }
  return chosen;
}

function row(
  kernel: KernelCase,
  seconds: number,
  copyRate: number,
  productRate: number,
): KernelRow {
  const { group, name, work } = kernel;
  const bytes = work && "bytes" in work ? work.bytes : null;
  const flops = work && "flops" in work ? work.flops : null;
  return {
    group,
    name,
    microseconds: 1e6 * seconds,
    bytes,
    flops,
    gigabytesPerSecond: bytes === null ? null : bytes / seconds / 1e9,
    tflops: flops === null ? null : flops / seconds / 1e12,
    ratio: bytes !== null ? bytes / copyRate / seconds : flops && flops / productRate / seconds,
  };
}

function squareProduct(bench: Workbench, size: number) {
  return () => {
    const [a, b] = [bench.random([size, size]), bench.random([size, size])];
    const c = bench.empty([size, size]);
    return () => native.gemm(a.native, b.native, c.native, false, true, false);
  };
}
