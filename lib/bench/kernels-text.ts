import type { KernelsResult } from "./kernels.js";

/** Formats the result of `bench kernels` as a table for a terminal. */
export function formatKernels(result: KernelsResult): string {
  const { device, model, run, rates, rows } = result;
  const windows = `${run.microBatch} x ${run.sequenceLength}`;
  const sheet = rates.dataSheetTflops;
  const share = sheet
    ? ` (${((100 * rates.productTflops) / sheet).toFixed(0)}% of the data sheet's ${sheet})`
    : "";
  const lines = [
    `${device.name} (${device.id}), ${model} at ${windows}, ${run.precision}, median of ${run.runs} runs`,
    `floors, measured here: copy ${figure(rates.copyGigabytesPerSecond)} GB/s, product of ${rates.productSize}x` +
      `${rates.productSize} ${figure(rates.productTflops)} TFLOP/s${share}`,
  ];
  const width = Math.max(...rows.map(({ name }) => name.length));
  let group = "";
  for (const row of rows) {
    if (row.group !== group) lines.push("", row.group);
    group = row.group;
    const rate =
      row.gigabytesPerSecond !== null
        ? `${figure(row.gigabytesPerSecond).padStart(8)} GB/s   `
        : row.tflops !== null
          ? `${figure(row.tflops).padStart(8)} TFLOP/s`
          : "";
    const ratio = row.ratio === null ? "" : `${row.ratio.toFixed(2)} of its floor`;
    lines.push(
      `  ${row.name.padEnd(width)}  ${row.microseconds.toFixed(1).padStart(10)} us  ${rate}  ${ratio}`.trimEnd(),
    );
  }
  return `${lines.join("\n")}\n`;
}

function figure(value: number): string {
  return value < 10 ? value.toPrecision(3) : value.toFixed(0);
}
