// Draws a step of a timeline: the compute stream's phases with its waits in them, and the
// communication below.
const width = 1200;
const left = 130;
const laneHeight = 34;
const colours = {
  forward: "#7aa6c2",
  backward: "#3f6f91",
  optimizer: "#8a8a8a",
  waiting: "#c8452f",
  allReduce: "#d9a441",
  reduceScatter: "#b5783a",
  allGather: "#6d9f5b",
};

/** Draws the last whole step of a rank. */
export function timelineSvg({ spans, steps }, title) {
  const { startMs, endMs } = steps.at(-1);
  const scale = (width - left - 10) / (endMs - startMs);
  const groups = [...new Set(spans.map(({ group, kind }) => kind === "communication" && group))];
  const lanes = ["compute", ...groups.filter(Boolean)];
  const parts = [];
  for (const { kind, name, group, bytes, startMs: from, endMs: to } of spans) {
    const [start, end] = [Math.max(from, startMs), Math.min(to, endMs)];
    if (end <= start) continue;
    const lane = lanes.indexOf(kind === "communication" ? group : "compute");
    const colour = colours[kind === "waiting" ? kind : name.split(" ")[0]] ?? "#d5d5d5";
    const [x, w] = [left + (start - startMs) * scale, Math.max(0.4, (end - start) * scale)];
    const inset = kind === "waiting" ? 8 : 0;
    const label = `${kind === "waiting" ? "waits for " : ""}${name}, ${(to - from).toFixed(2)} ms`;
    parts.push(
      `<rect x="${x.toFixed(1)}" y="${40 + lane * laneHeight + inset}" width="${w.toFixed(1)}" height="${laneHeight - 6 - 2 * inset}" ` +
        `fill="${colour}" stroke="#fff" stroke-width="0.3"><title>${label}${bytes ? `, ${(bytes / 1e6).toFixed(1)} MB` : ""}</title></rect>`,
    );
  }
  const names = lanes.map(
    (lane, i) =>
      `<text x="4" y="${40 + i * laneHeight + 18}">${i === 0 ? lane : `comm. ${lane}`}</text>`,
  );
  const bottom = 40 + lanes.length * laneHeight;
  const key = Object.entries(colours).map(
    ([name, colour], i) =>
      `<rect x="${left + i * 130}" y="${bottom + 26}" width="12" height="12" fill="${colour}"/>` +
      `<text x="${left + i * 130 + 17}" y="${bottom + 36}">${name}</text>`,
  );
  const ticks = Array.from({ length: 6 }, (_, i) => {
    const ms = ((endMs - startMs) * i) / 5;
    return `<text x="${(left + ms * scale).toFixed(0)}" y="${bottom + 12}" text-anchor="middle">${ms.toFixed(1)} ms</text>`;
  });
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${bottom + 48}" font-family="sans-serif" font-size="11">
<rect width="100%" height="100%" fill="#fff"/>
<text x="4" y="20" font-size="14">${title}</text>
${[...parts, ...names, ...ticks, ...key].join("\n")}
</svg>
`;
}
