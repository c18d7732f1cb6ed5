import { formatBytes } from "../plan/format.js";
import { describeWaits } from "../train/device-waits.js";
import { describeHost } from "../train/run-times.js";
import type { CountedRate } from "./figures.js";
import type { ParityResult } from "./parity.js";

const whole = (n: number): string => Math.round(n).toLocaleString("en-US");
const ms = (n: number): string => `${n < 100 ? n.toFixed(1) : whole(n)} ms`;

/** Formats the result of `bench parity` for a terminal. */
export function formatParity(result: ParityResult): string {
  const { model, run, device, stepMs, bare, partsMs, memory, figures, versions } = result;
  const { peak, causal, fullAttention, per300B } = figures;
  const known = "tflops" in peak;
  const unit = device.id === "cpu" ? "on this CPU" : "per GPU";
  const rows: [string, string][] = [
    [
      "device",
      `${device.name} (${device.id})${device.driver ? `, driver CUDA ${device.driver}` : ""}`,
    ],
    [
      "model",
      `${model.name}, ${whole(model.parameters)} parameters, ${run.precision}, recompute ${run.recompute}`,
    ],
    [
      "step",
      `${run.accumulation} x ${run.microBatch} windows of ${run.sequenceLength} = ` +
        `${whole(run.tokensPerStep)} tokens, ${run.data}`,
    ],
    [
      "speed",
      `${whole(result.tokensPerSecond)} tokens/s ${unit}, through the Trainer as in \`train\``,
    ],
    [
      "step time",
      `${ms(stepMs.median)}, median of ${run.steps} (${ms(stepMs.fastest)} to ${ms(stepMs.slowest)})`,
    ],
    [
      "bare loop",
      `${whole(bare.tokensPerSecond)} tokens/s, ${ms(bare.stepMs.median)} (${ms(bare.stepMs.fastest)} to ` +
        `${ms(bare.stepMs.slowest)}), half before and half after`,
    ],
    ["train / bare", `${result.trainOfBare.toFixed(3)} (to be at least 0.99)`],
    ["train waits", describeWaits(result.waitMs, result.waitMs.ofMs)],
    ["train host", describeHost(result.host, 1)],
    ["bare host", describeHost(bare.host, 1)],
    [
      "by part",
      `input ${ms(partsMs.input)}, forward ${ms(partsMs.forward)}, backward ${ms(partsMs.backward)}, ` +
        `optimizer ${ms(partsMs.optimizer)}`,
    ],
    [
      "",
      "(in bare steps of their own that wait after each part; forward has the head's gradients)",
    ],
    ["causal", rate(causal)],
    ["full attention", `${rate(fullAttention)} (TinyLlama's convention)`],
    [
      "peak",
      known
        ? `${peak.tflops} TFLOP/s of an ${peak.name} (${peak.source})`
        : `not known, so no MFU: ${peak.unknown}`,
    ],
    [
      "memory",
      `${formatBytes(memory.peakBytes)} at the peak, ${formatBytes(memory.reservedBytes)} held`,
    ],
    ["loss", `${result.loss.first.toFixed(3)} first, ${result.loss.last.toFixed(3)} last`],
    [
      "300B tokens",
      `${whole(per300B.deviceHours)} ${device.id === "cpu" ? "hours of this CPU" : "GPU-hours"}` +
        (per300B.a100Hours === null
          ? ""
          : `, ${whole(per300B.a100Hours)} A100-hours at an A100's peak of 312 TFLOP/s`),
    ],
  ];
  const { published, peer } = { published: figures.published, peer: result.peer };
  if (published) {
    const { what, value } = published.tokensPerSecond;
    const list = published.a100HoursPer300B.map(({ model, hours }) => `${model} ${whole(hours)}`);
    rows.push(["published", `${list.join(", ")} A100-hours; ${what}: ${whole(value)} tokens/s`]);
  }
  if (peer) {
    const name = `${peer.program}${peer.version ? ` ${peer.version}` : ""}`;
    const bytes = peer.peakBytes === null ? "" : `, ${formatBytes(peer.peakBytes)} at the peak`;
    rows.push(
      ["peer", `${name}: ${whole(peer.tokensPerSecond)} tokens/s${bytes}`],
      ["ratio", `${peer.ratio.toFixed(3)} of the peer's tokens/s`],
    );
  }
  rows.push(["versions", `llamaforge ${versions.llamaforge}, Node.js ${versions.node}`]);
  const width = Math.max(...rows.map(([name]) => name.length));
  return `${rows.map(([name, text]) => `${name.padEnd(width)}  ${text}`).join("\n")}\n`;
}

function rate({ gflopPerToken, tflops, mfu }: CountedRate): string {
  const share = mfu === null ? "" : `, MFU ${(100 * mfu).toFixed(1)}%`;
  const speed = tflops < 10 ? tflops.toPrecision(3) : tflops.toFixed(1);
  return `${speed} TFLOP/s${share} at ${gflopPerToken.toPrecision(4)} GFLOP per token`;
}
