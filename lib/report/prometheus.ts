import type { RunInfo, StepMetrics } from "../train/metrics.js";

/** Gauges of a step: name, help, and the value's place. */
const gauges: readonly [string, string, (step: StepMetrics) => number | undefined][] = [
  ["step", "Number of the last step", ({ step }) => step],
  ["tokens_total", "Tokens trained on so far", ({ tokens }) => tokens],
  ["loss", "Mean cross-entropy of the last step in nats per token", ({ loss }) => loss],
  ["learning_rate", "Learning rate of the last step", ({ lr }) => lr],
  ["gradient_norm", "Gradient norm of the last step before clipping", ({ gradNorm }) => gradNorm],
  ["tokens_per_second", "Speed of the last step", ({ tokensPerSecond }) => tokensPerSecond],
  ["step_seconds", "Time of the last step", ({ stepMs }) => stepMs / 1000],
  ["data_wait_seconds", "Wait for data in the last step", ({ dataWaitMs }) => dataWaitMs / 1000],
  ["device_bytes", "Bytes of tensors on the device", ({ deviceBytes }) => deviceBytes],
  ["process_bytes", "Resident memory of the process", ({ rssBytes }) => rssBytes],
];

/**
 * The last step in Prometheus' text format, which OpenTelemetry's collector reads as well.
 * @param step undefined before the first step: then there are no values
 */
export function prometheusText({ config }: RunInfo, step: StepMetrics | undefined): string {
  if (step === undefined) return "";
  const label = `{run="${config.name.replace(/[\\"\n]/g, (sign) => (sign === "\n" ? "\\n" : `\\${sign}`))}"}`;
  const lines = gauges.flatMap(([name, help, figure]) => {
    const value = figure(step);
    const full = `llamaforge_train_${name}`;
    const type = name.endsWith("_total") ? "counter" : "gauge";
    return value === undefined
      ? []
      : [`# HELP ${full} ${help}`, `# TYPE ${full} ${type}`, `${full}${label} ${spelled(value)}`];
  });
  return `${lines.join("\n")}\n`;
}

function spelled(value: number): string {
  if (Number.isNaN(value)) return "NaN";
  if (Number.isFinite(value)) return String(value);
  return value > 0 ? "+Inf" : "-Inf";
}
