// The charts of report.html. Inlined into the page after uPlot; reads the columns in #run-data.
(() => {
  "use strict";
  const data = JSON.parse(document.getElementById("run-data").textContent);
  const state = { x: "step", logLoss: false, smoothing: 0.6 };
  let charts = [];

  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  const compact = (value) => {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    const units = [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]];
    const [scale, unit] = units.find(([limit]) => size >= limit) ?? [1, ""];
    return `${Number((value / scale).toPrecision(4))}${unit}`;
  };
  const plain = (value) => (value === null || value === undefined ? "" : value.toLocaleString("en-US"));
  const digits = (value) => (value === null || value === undefined ? "–" : String(Number(value.toPrecision(4))));
  const power = (value) => {
    if (value === null || value === undefined) return "–";
    return value === 0 ? "0" : value.toExponential(2).replace(/\.?0*e/, "e").replace("e+", "e");
  };
  const bytes = (value) => {
    if (value === null || value === undefined) return "–";
    const units = [[1e12, "TB"], [1e9, "GB"], [1e6, "MB"], [1e3, "kB"]];
    const [scale, unit] = units.find(([limit]) => value >= limit) ?? [1, "B"];
    return `${Number((value / scale).toPrecision(3))} ${unit}`;
  };
  const xValue = (value) => (state.x === "step" ? plain(value) : compact(value));

  /** Exponential moving average over the points before and after, so that it does not lag; gaps stay. */
  function smooth(values) {
    if (state.smoothing === 0) return values;
    // Up to a twentieth of the points, on a scale that feels even to the hand.
    const span = Math.max(1, (values.length / 20) * state.smoothing ** 2);
    const keep = span / (span + 1);
    const pass = (sequence) => {
      let sum = 0;
      let weight = 0;
      return sequence.map((value) => {
        if (value === null) return null;
        sum = keep * sum + (1 - keep) * value;
        weight = keep * weight + (1 - keep);
        return { sum, weight };
      });
    };
    const before = pass(values);
    const after = pass([...values].reverse()).reverse();
    return values.map((value, i) => {
      if (value === null) return null;
      // The point itself is in both halves.
      const weight = before[i].weight + after[i].weight - (1 - keep);
      return (before[i].sum + after[i].sum - (1 - keep) * value) / weight;
    });
  }

  /** Ticks for a log axis, which may span much less than a decade. */
  function logTicks(min, max) {
    const ticks = [];
    if (max / min < 4) {
      const rough = (max - min) / 6;
      const unit = 10 ** Math.floor(Math.log10(rough));
      const step = unit * [1, 2, 5, 10].find((factor) => factor * unit >= rough);
      for (let i = Math.ceil(min / step); i * step <= max; i++) ticks.push(Number((i * step).toPrecision(6)));
      return ticks;
    }
    const steps = max / min > 1000 ? [1] : max / min > 30 ? [1, 2, 5] : [1, 2, 3, 4, 5, 6, 8];
    for (let decade = Math.floor(Math.log10(min)); decade <= Math.log10(max); decade++) {
      for (const step of steps) {
        const tick = Number((step * 10 ** decade).toPrecision(3));
        if (tick >= min && tick <= max) ticks.push(tick);
      }
    }
    return ticks;
  }

  /** Vertical lines at the steps that the guard skipped. */
  const skipMarks = {
    hooks: {
      draw: (chart) => {
        const { ctx, bbox } = chart;
        ctx.save();
        ctx.strokeStyle = color("--skip");
        ctx.lineWidth = devicePixelRatio;
        ctx.setLineDash([4 * devicePixelRatio, 3 * devicePixelRatio]);
        for (const skip of data.skipped) {
          const x = chart.valToPos(skip[state.x], "x", true);
          if (x < bbox.left || x > bbox.left + bbox.width) continue;
          ctx.beginPath();
          ctx.moveTo(x, bbox.top);
          ctx.lineTo(x, bbox.top + bbox.height);
          ctx.stroke();
        }
        ctx.restore();
      },
    },
  };

  /** Horizontal lines at the scores that known models have on a task, named at the right. */
  const publishedLines = (published) => ({
    hooks: {
      drawAxes: (chart) => {
        const { ctx, bbox } = chart;
        const right = bbox.left + bbox.width;
        const size = 10.5 * devicePixelRatio;
        ctx.save();
        ctx.strokeStyle = color("--faint");
        ctx.lineWidth = devicePixelRatio;
        ctx.font = `${size}px system-ui, sans-serif`;
        ctx.textAlign = "right";
        ctx.textBaseline = "middle";
        const labels = [...published]
          .sort((a, b) => b.value - a.value)
          .map(({ model, value }) => ({ model, value, y: chart.valToPos(value, "y", true) }));
        ctx.setLineDash([2 * devicePixelRatio, 3 * devicePixelRatio]);
        for (const { y } of labels) {
          ctx.beginPath();
          ctx.moveTo(bbox.left, y);
          ctx.lineTo(right, y);
          ctx.stroke();
        }
        // Labels of close lines move apart, downwards from the highest one.
        let free = bbox.top;
        for (const { model, value, y } of labels) {
          const at = Math.max(y - 0.6 * size, free + 0.6 * size);
          free = at + 0.6 * size;
          const text = `${model} ${value.toFixed(1)}`;
          const width = ctx.measureText(text).width;
          ctx.fillStyle = color("--panel");
          ctx.fillRect(right - width - 8 * devicePixelRatio, at - 0.55 * size, width + 8 * devicePixelRatio, 1.1 * size);
          ctx.fillStyle = color("--faint");
          ctx.fillText(text, right - 4 * devicePixelRatio, at);
        }
        ctx.restore();
      },
    },
  });

  const taskChart = ({ task, label, values, published }) => ({
    id: `task-${task}`, title: task, note: published.length > 0 ? `${label} · dotted: published` : label,
    height: 240, format: digits, plugins: [publishedLines(published)],
    reach: published.map(({ value }) => value),
    series: [
      line(label, values, {
        stroke: color("--series-1"), spanGaps: true,
        points: { show: true, size: 7, fill: color("--panel"), width: 2 },
      }),
    ],
  });

  const line = (label, column, more) => ({ label, column, width: 2, points: { show: false }, ...more });

  /** What each chart shows; evaluated anew for every drawing, since colours and settings change. */
  const descriptions = () => {
    const one = color("--series-1");
    const two = color("--series-2");
    const three = color("--series-3");
    const faint = color("--series-1-faint");
    const skips = data.skipped.length > 0 ? `${plain(data.skipped.length)} skipped steps marked` : "";
    return [
      {
        id: "loss", title: "Loss", note: `nats per token ${skips && `· ${skips}`}`, wide: true, height: 340,
        format: digits, log: state.logLoss, plugins: [skipMarks],
        series: [
          line("train", data.loss, { stroke: faint, width: 1 }),
          line("train, smoothed", smooth(data.loss), { stroke: one }),
          line("validation", data.validation, {
            stroke: two, spanGaps: true, points: { show: true, size: 7, fill: color("--panel"), width: 2 },
          }),
        ],
      },
      {
        id: "lr", title: "Learning rate", note: "", height: 210, format: power, fromZero: true,
        series: [line("learning rate", data.lr, { stroke: one })],
      },
      {
        id: "gradNorm", title: "Gradient norm", note: `before clipping to ${data.clip}`, height: 210,
        format: digits, fromZero: true, plugins: [skipMarks],
        series: [
          line("gradient norm", data.gradNorm, { stroke: faint, width: 1 }),
          line("smoothed", smooth(data.gradNorm), { stroke: one }),
        ],
      },
      {
        id: "speed", title: "Speed", note: "tokens per second", height: 210, format: compact, fromZero: true,
        series: [
          line("tokens/s", data.tokensPerSecond, { stroke: faint, width: 1 }),
          line("smoothed", smooth(data.tokensPerSecond), { stroke: one }),
        ],
      },
      {
        id: "memory", title: "Memory", note: "", height: 210, format: bytes, fromZero: true,
        series: [
          line("tensors on the device", data.deviceBytes, { stroke: one }),
          line("whole process", data.rssBytes, { stroke: three }),
        ],
      },
      ...data.tasks.map(taskChart),
    ];
  };

  function options(chart, width) {
    const axis = {
      stroke: color("--faint"),
      grid: { stroke: color("--grid"), width: 1 },
      ticks: { stroke: color("--grid"), width: 1, size: 5 },
      font: "12px system-ui, sans-serif",
    };
    const y = { range: (_, min, max) => yRange(chart, min, max) };
    if (chart.log) y.distr = 3;
    const yAxis = { ...axis, size: 62, values: (_, ticks) => ticks.map((tick) => chart.format(tick)) };
    if (chart.log) {
      yAxis.splits = (_, __, min, max) => logTicks(min, max);
      yAxis.filter = (_, ticks) => ticks;
    }
    return {
      width,
      height: chart.height,
      scales: { x: { time: false }, y },
      axes: [{ ...axis, size: 32, values: (_, ticks) => ticks.map(xValue), space: 70 }, yAxis],
      series: [
        { label: state.x, value: (_, value) => (value === null ? "–" : xValue(value)) },
        ...chart.series.map(({ column, ...series }) => ({
          ...series,
          value: (_, value) => chart.format(value),
        })),
      ],
      cursor: { sync: { key: "run" }, points: { size: 7 }, focus: { prox: 24 } },
      focus: { alpha: 1 },
      plugins: chart.plugins ?? [],
    };
  }

  function yRange(chart, min, max) {
    if (min === null || max === null) return chart.log ? [1, 10] : [0, 1];
    if (chart.reach) {
      min = Math.min(min, ...chart.reach);
      max = Math.max(max, ...chart.reach);
    }
    if (chart.log) return [min * 0.97, max * 1.03];
    if (chart.fromZero) return [0, max > 0 ? max * 1.06 : 1];
    const margin = (max - min) * 0.06 || Math.abs(max) * 0.1 || 1;
    return [min - margin, max + margin];
  }

  const columns = (chart) => [data[state.x], ...chart.series.map(({ column }) => column)];

  const zoomed = () => charts.length > 0 && charts[0].zoomed;

  /** @param keep whether the shown part of the x axis stays: it does where the user has chosen one */
  function draw(keep = zoomed()) {
    const zoom = keep && charts[0] ? charts[0].plot.scales.x : null;
    const kept = zoom && charts[0].x === state.x ? { min: zoom.min, max: zoom.max } : null;
    for (const { plot } of charts) plot.destroy();
    charts = descriptions().map((description) => {
      const host = hosts.get(description.id);
      const plot = new uPlot(options(description, host.clientWidth), columns(description), host);
      if (kept) plot.setScale("x", kept);
      const chart = { plot, host, x: state.x };
      Object.defineProperty(chart, "zoomed", {
        get: () => plot.scales.x.min > data[chart.x][0] || plot.scales.x.max < data[chart.x].at(-1),
      });
      return chart;
    });
  }

  const hosts = new Map();

  function build() {
    const section = document.getElementById("charts");
    for (const { id, title, note, wide } of descriptions()) {
      const figure = document.createElement("figure");
      figure.dataset.chart = id;
      if (wide) figure.className = "wide";
      const caption = document.createElement("figcaption");
      const small = document.createElement("small");
      small.textContent = note;
      caption.append(title, small);
      const host = document.createElement("div");
      hosts.set(id, host);
      figure.append(caption, host);
      section.append(figure);
    }
  }

  build();
  draw();

  // A page that is kept up to date gets further points of every column, and the charts of all tasks.
  addEventListener("run-data", ({ detail }) => {
    const { tasks, skipped, ...columns } = detail;
    // Without a zoom the axis grows with the run.
    const keep = zoomed();
    for (const [name, values] of Object.entries(columns)) data[name].push(...values);
    data.skipped.push(...skipped);
    const known = data.tasks.map(({ task }) => task).join();
    data.tasks = tasks;
    if (tasks.map(({ task }) => task).join() !== known) {
      document.getElementById("charts").replaceChildren();
      hosts.clear();
      build();
    }
    draw(keep);
  });

  new ResizeObserver(() => {
    for (const { plot, host } of charts) {
      if (host.clientWidth !== plot.width) plot.setSize({ width: host.clientWidth, height: plot.height });
    }
  }).observe(document.getElementById("charts"));

  for (const input of document.querySelectorAll('input[name="x"]')) {
    input.addEventListener("change", () => {
      state.x = input.value;
      draw();
    });
  }
  document.getElementById("log-loss").addEventListener("change", (event) => {
    state.logLoss = event.target.checked;
    draw();
  });
  document.getElementById("smoothing").addEventListener("input", (event) => {
    state.smoothing = Number(event.target.value) / 100;
    draw();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw());
})();
