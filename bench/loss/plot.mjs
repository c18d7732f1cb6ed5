// Draws the validation losses of a result of run.mjs, and how far each run is from the first.
//
//   node bench/loss/plot.mjs RESULT.json OUT.svg
import { readFileSync, writeFileSync } from "node:fs";

const [file, out] = process.argv.slice(2);
const { runs, recipe } = JSON.parse(readFileSync(file, "utf8"));
const colours = ["#d95f02", "#1b3a6b", "#2a7f62", "#7b3294"];
const width = 800;
const [left, right] = [60, 20];
const most = Math.max(...runs.flatMap(({ validation }) => validation.map(({ tokens }) => tokens)));
const x = (tokens) => left + (tokens / most) * (width - left - right);
const line = (points, y) =>
  points
    .map(([tokens, value], i) => `${i ? "L" : "M"}${x(tokens).toFixed(1)} ${y(value).toFixed(1)}`)
    .join("");
const scale = (low, high, top, bottom) => (value) =>
  bottom - ((value - low) / (high - low)) * (bottom - top);
const all = runs.flatMap(({ validation }) => validation.map(({ loss }) => loss));
const [low, high] = [Math.floor(Math.min(...all)), Math.ceil(Math.max(...all))];
const loss = scale(low, high, 40, 300);
const others = runs.slice(1).map((run) => ({
  ...run,
  points: run.validation.map(({ tokens }, i) => [tokens, 100 * run.validationApart[i]]),
}));
const late = others.flatMap(({ points }) => points.slice(Math.floor(points.length / 5)));
const bound = Math.max(0.5, ...late.map(([, percent]) => Math.abs(percent))) * 1.1;
const apart = scale(-bound, bound, 330, 430);
const axis = (numbers, y, digits, unit = "") =>
  numbers
    .map(
      (value) =>
        `<path d="M${left} ${y(value)}H${width - right}" stroke="#ddd"/>` +
        `<text x="${left - 8}" y="${y(value) + 4}" text-anchor="end">${value.toFixed(digits)}${unit}</text>`,
    )
    .join("\n");
const clamp = (points) =>
  points.map(([tokens, value]) => [tokens, Math.max(-bound, Math.min(bound, value))]);
const marks = Array.from({ length: 5 }, (_, i) => (most * i) / 4);
writeFileSync(
  out,
  `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} 480" font-family="sans-serif" font-size="12">
<rect width="${width}" height="480" fill="white"/>
<text x="${left}" y="22" font-size="14">${recipe.model.preset}: validation loss, and how far from that of ${runs[0].name} in percent</text>
${axis(
  Array.from({ length: high - low + 1 }, (_, i) => low + i),
  loss,
  0,
)}
${axis([-bound, 0, bound], apart, 2, "%")}
${runs
  .map(({ name, validation }, i) => {
    const points = validation.map(({ tokens, loss }) => [tokens, loss]);
    const style = `fill="none" stroke="${colours[i]}" stroke-width="${i ? 1.2 : 3}" opacity="${i ? 1 : 0.6}"`;
    return `<path d="${line(points, loss)}" ${style}/>
<text x="${width - 150}" y="${60 + 18 * i}" fill="${colours[i]}">${name}</text>`;
  })
  .join("\n")}
${others.map(({ points }, i) => `<path d="${line(clamp(points), apart)}" fill="none" stroke="${colours[i + 1]}"/>`).join("\n")}
${marks.map((tokens) => `<text x="${x(tokens)}" y="452" text-anchor="middle">${(tokens / 1e6).toFixed(0)}M</text>`).join("\n")}
<text x="${width / 2}" y="472" text-anchor="middle">tokens</text>
</svg>
`,
);
