import { type Device, deviceName } from "../core/device.js";
import { buildInfo, cudaInfo } from "../core/native.js";

/** Date, device and versions of a measurement; the beginning of every result file. */
export interface BenchEnvironment {
  /** ISO 8601, UTC. */
  date: string;
  device: {
    /** `cpu` or `cuda:N`. */
    id: string;
    name: string;
    /** CUDA version of the driver; omitted on the CPU. */
    driver?: string;
    libraries?: string[];
  };
  versions: { llamaforge: string; node: string };
}

/** @param name of the device, from `describeDevice` */
export function benchEnvironment(device: Device, name: string): BenchEnvironment {
  const { driver, libraries } = device.type === "cuda" ? cudaInfo() : {};
  return {
    date: new Date().toISOString(),
    device: { id: deviceName(device), name, ...(driver && { driver, libraries }) },
    versions: { llamaforge: buildInfo().version, node: process.version },
  };
}

/** The median; for an even count, the upper of the two middle numbers. */
export function median(numbers: readonly number[]): number {
  return [...numbers].sort((a, b) => a - b)[Math.floor(numbers.length / 2)] as number;
}
