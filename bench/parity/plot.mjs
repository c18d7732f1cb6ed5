// Writes both curves into one JSON file and one SVG, and prints how far apart they are; exit code 1
// at 0.01 or more.
//
//   node bench/parity/plot.mjs FOLDER OUT        writes OUT.json and OUT.svg
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const [folder, out] = process.argv.slice(2);
const read = (name) => JSON.parse(readFileSync(join(folder, name), "utf8"));
const [run, ours, peer] = ["run.json", "ours.json", "peer.json"].map(read);
const difference = ours.losses.map((loss, i) => loss - peer.losses[i]);
const mean = difference.reduce((sum, d) => sum + Math.abs(d), 0) / difference.length;
const largest = Math.max(...difference.map(Math.abs));
const rounded = (values) => values.map((value) => Number(value.toPrecision(8)));
const result = {
  meanAbsoluteDifference: mean,
  largestDifference: largest,
  run,
  peer: peer.versions,
  ours: { losses: rounded(ours.losses), gradNorms: rounded(ours.gradNorms) },
  pytorch: { losses: rounded(peer.losses), gradNorms: rounded(peer.gradNorms) },
};
writeFileSync(`${out}.json`, `${JSON.stringify(result)}\n`);

// There are two panels: both losses, and their difference on a scale of its own.
const width = 800;
const [left, right] = [60, 20];
const x = (step) => left + (step / (ours.losses.length - 1)) * (width - left - right);
const path = (values, y) =>
  values.map((value, i) => `${i ? "L" : "M"}${x(i).toFixed(1)} ${y(value).toFixed(1)}`).join("");
const scale = (low, high, top, bottom) => (value) =>
  bottom - ((value - low) / (high - low)) * (bottom - top);
const all = [...ours.losses, ...peer.losses];
const [low, high] = [Math.floor(Math.min(...all)), Math.ceil(Math.max(...all))];
const loss = scale(low, high, 40, 300);
const bound = Math.max(0.02, largest);
const apart = scale(-bound, bound, 330, 430);
const axis = (values, y, digits) =>
  values
    .map(
      (value) =>
        `<path d="M${left} ${y(value)}H${width - right}" stroke="#ddd"/>` +
        `<text x="${left - 8}" y="${y(value) + 4}" text-anchor="end">${value.toFixed(digits)}</text>`,
    )
    .join("\n");
const steps = Array.from({ length: 7 }, (_, i) => Math.round((i * (ours.losses.length - 1)) / 6));
writeFileSync(
  `${out}.svg`,
  `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} 480" font-family="sans-serif" font-size="12">
<rect width="${width}" height="480" fill="white"/>
<text x="${left}" y="22" font-size="14">${run.preset}, ${run.steps} steps: training loss, and LlamaForge minus PyTorch (mean |difference| ${mean.toFixed(5)})</text>
${axis(
  Array.from({ length: high - low + 1 }, (_, i) => low + i),
  loss,
  0,
)}
${axis([-bound, 0, bound], apart, 3)}
<path d="${path(peer.losses, loss)}" fill="none" stroke="#d95f02" stroke-width="3" opacity="0.6"/>
<path d="${path(ours.losses, loss)}" fill="none" stroke="#1b3a6b" stroke-width="1"/>
<path d="${path(difference, apart)}" fill="none" stroke="#1b3a6b"/>
<text x="${width - 150}" y="60" fill="#1b3a6b">LlamaForge</text>
<text x="${width - 150}" y="78" fill="#d95f02">PyTorch</text>
${steps.map((step) => `<text x="${x(step)}" y="452" text-anchor="middle">${step + 1}</text>`).join("\n")}
<text x="${width / 2}" y="472" text-anchor="middle">step</text>
</svg>
`,
);
console.log(
  `mean |difference| ${mean.toFixed(5)}, largest ${largest.toFixed(5)} over ${difference.length} steps`,
);
if (!(mean < 0.01)) process.exitCode = 1;
