// The charts of a comparison of runs. Inlined after uPlot; reads the runs in #runs-data.
(() => {
  "use strict";
  const runs = JSON.parse(document.getElementById("runs-data").textContent);
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  /** Hues far apart, which both colour schemes show. */
  const hue = (i) => `hsl(${[221, 28, 160, 330, 265, 48, 190, 0][i % 8]} 75% ${matchMedia("(prefers-color-scheme: dark)").matches ? 66 : 45}%)`;
  const compact = (value) => {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    const [scale, unit] = [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]].find(([limit]) => size >= limit) ?? [1, ""];
    return `${Number((value / scale).toPrecision(4))}${unit}`;
  };
  const power = (value) => (value ? value.toExponential(2) : String(value ?? "–"));
  const charts = [
    { id: "loss", title: "Training loss, smoothed", column: "loss", format: compact, wide: true, height: 340, smooth: true },
    { id: "validation", title: "Validation loss", column: "validation", format: compact, wide: true, height: 300, points: true },
    { id: "lr", title: "Learning rate", column: "lr", format: power, height: 220 },
    { id: "speed", title: "Tokens per second", column: "tokensPerSecond", format: compact, height: 220, smooth: true },
  ].filter(({ column }) => runs.some((run) => run[column].some((value) => value !== null)));

  /** A mean over the twentieth of the points around each. */
  function smoothed(values) {
    const reach = Math.max(1, Math.round(values.length / 40));
    return values.map((value, i) => {
      if (value === null) return null;
      const near = values.slice(Math.max(0, i - reach), i + reach + 1).filter((each) => each !== null);
      return near.reduce((sum, each) => sum + each, 0) / near.length;
    });
  }

  let axis = "step";
  let plots = [];
  const hosts = charts.map(({ id, title, wide }) => {
    const figure = document.createElement("figure");
    figure.dataset.chart = id;
    if (wide) figure.className = "wide";
    const caption = document.createElement("figcaption");
    caption.textContent = title;
    const host = document.createElement("div");
    figure.append(caption, host);
    document.getElementById("charts").append(figure);
    return host;
  });

  function draw() {
    for (const plot of plots) plot.destroy();
    const faint = { stroke: color("--faint"), grid: { stroke: color("--grid"), width: 1 }, ticks: { show: false } };
    plots = charts.map(({ column, format, height, points, smooth }, c) => {
      // The runs have points of their own: one axis joins them, with gaps that each line spans.
      const tables = runs.map((run) => [run[axis], smooth ? smoothed(run[column]) : run[column]]);
      const options = {
        width: hosts[c].clientWidth,
        height,
        scales: { x: { time: false } },
        axes: [
          { ...faint, values: (_, ticks) => ticks.map(compact) },
          { ...faint, size: 62, values: (_, ticks) => ticks.map(format) },
        ],
        cursor: { sync: { key: "runs" } },
        series: [
          { label: axis, value: (_, value) => compact(value) },
          ...runs.map(({ name }, i) => ({
            label: name, stroke: hue(i), width: 2, spanGaps: true,
            points: { show: Boolean(points), size: 6 },
            value: (_, value) => format(value),
          })),
        ],
      };
      return new uPlot(options, uPlot.join(tables, runs.map(() => [1, 1])), hosts[c]);
    });
  }
  draw();
  new ResizeObserver(() => plots.forEach((plot, i) => {
    if (hosts[i].clientWidth !== plot.width) plot.setSize({ width: hosts[i].clientWidth, height: plot.height });
  })).observe(document.getElementById("charts"));
  for (const input of document.querySelectorAll('input[name="x"]')) {
    input.addEventListener("change", () => {
      axis = input.value;
      draw();
    });
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
