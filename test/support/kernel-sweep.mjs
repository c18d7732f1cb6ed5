// Runs every operation on each of its paths, for compute-sanitizer (scripts/sanitize.mjs): odd
// sizes and sizes aligned to 16 bytes, rows held in registers and rows read again, few and many
// rows, f32 and bf16, each attention kernel and head size. It does not check values. It fails if an
// operation of the addon is never called.
//
//   LLAMAFORGE_TEST_DEVICE=cuda:0 node test/support/kernel-sweep.mjs [OP...]
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("../..", import.meta.url));
const { NativeTensor, ops } = createRequire(import.meta.url)("node-gyp-build")(root);
const device =
  Number(/^cuda:?(\d*)$/.exec(process.env.LLAMAFORGE_TEST_DEVICE ?? "")?.[1] ?? -1) + 1;
const chosen = new Set(process.argv.slice(2));

const empty = (shape, dtype = "f32") => new NativeTensor(device, dtype, shape);
let seed = 0;
function random(shape, dtype = "f32", scale = 1) {
  const x = empty(shape, dtype);
  if (shape.every((size) => size > 0)) ops.philoxNormal(x, 0, scale, ++seed, 0);
  return x;
}
function filled(shape, value, dtype = "f32") {
  const x = empty(shape, dtype);
  ops.fill(x, value);
  return x;
}
function integers(shape, below) {
  const x = empty(shape, "i32");
  const size = shape.reduce((a, b) => a * b, 1);
  x.write(Int32Array.from({ length: size }, (_, i) => (i * 7919 + (i >> 3)) % below));
  return x;
}

const dtypes = ["f32", "bf16"];
const each = (lists, body) => {
  for (const list of lists) for (const dtype of dtypes) body(dtype, ...list);
};
// Numbers of elements: one, a part of a vector, odd, aligned, more than a grid of 256 threads takes
// at a time.
const flat = [[1], [7], [4099], [8192], [600_001], [1 << 20]];

/** i32 of each token, from its index in its window. */
function perToken(batch, time, value) {
  const values = empty([batch, time], "i32");
  values.write(Int32Array.from({ length: batch * time }, (_, i) => value(i % time)));
  return values;
}
const attention = (dtype, batch, time, heads, kvHeads, size) => {
  const width = (heads + 2 * kvHeads) * size;
  const qkv = random([batch, time, width], dtype);
  const o = empty([batch, time, heads * size], dtype);
  const statistics = empty([2, batch, heads, time]);
  const scale = size ** -0.5;
  // All keys, documents of 50 tokens, a sliding window of 70.
  const firstKeys = [
    null,
    perToken(batch, time, (t) => t - (t % 50)),
    perToken(batch, time, (t) => Math.max(0, t - 69)),
  ];
  for (const firstKey of firstKeys) {
    ops.attentionForward(qkv, firstKey, o, statistics, heads, kvHeads, scale);
    const [dO, dQkv] = [
      random([batch, time, heads * size], dtype),
      empty([batch, time, width], dtype),
    ];
    ops.attentionBackward(dO, qkv, o, statistics, firstKey, dQkv, heads, kvHeads, scale);
  }
};

/** Functions that call an operation on all of its paths. Some call several related operations. */
const sweeps = {
  gemm() {
    const shapes = [
      [1, 1, 1],
      [33, 65, 17],
      [128, 256, 64],
      [7, 512, 512],
    ];
    each(shapes, (dtype, m, n, k) => {
      for (const [ta, tb] of [
        [false, false],
        [true, false],
        [false, true],
      ]) {
        const a = random(ta ? [k, m] : [m, k], dtype);
        const b = random(tb ? [n, k] : [k, n], dtype);
        for (const independentRows of [false, true]) {
          ops.gemm(a, b, empty([m, n], dtype), ta, tb, independentRows);
          ops.gemmAccumulate(a, b, filled([m, n], 1), ta, tb, independentRows);
        }
      }
      ops.gemm(
        random([3, m, k], dtype),
        random([3, k, n], dtype),
        empty([3, m, n], dtype),
        false,
        false,
        false,
      );
    });
  },
  embedding() {
    each(
      [
        [1, 8],
        [300, 33],
        [5000, 64],
      ],
      (dtype, tokens, hidden) => {
        const ids = integers([tokens], 29);
        ops.embeddingForward(ids, random([29, hidden], dtype), empty([tokens, hidden], dtype));
        ops.embeddingBackward(ids, random([tokens, hidden], dtype), filled([29, hidden], 0));
      },
    );
  },
  rmsNorm() {
    // Rows of up to 256 vectors of 16 bytes fit in registers. Odd and longer rows do not.
    each(
      [
        [1, 8],
        [3, 193],
        [37, 256],
        [1037, 512],
        [5, 1024],
        [301, 2048],
        [9, 8192],
      ],
      (dtype, rows, hidden) => {
        const [x, skip, dy] = [1, 2, 3].map(() => random([rows, hidden], dtype));
        const weight = random([hidden], dtype);
        const [r, y, dx] = [1, 2, 3].map(() => empty([rows, hidden], dtype));
        const rstd = empty([rows]);
        ops.rmsNormForward(x, weight, y, rstd, 1e-5);
        ops.addRmsNormForward(x, skip, weight, r, y, rstd, 1e-5);
        ops.rmsNormBackward(dy, r, weight, rstd, skip, dx, filled([hidden], 0));
        ops.rmsNormBackward(dy, r, weight, rstd, null, dx, null);
      },
    );
  },
  rope() {
    each(
      [
        [1, 1, 3, 2],
        [2, 77, 6, 6],
        [2, 128, 6, 64],
        [1, 65, 5, 128],
      ],
      (dtype, batch, time, heads, size) => {
        const table = empty([time + 3, size / 2, 2]);
        ops.ropeTable(table, 10000);
        const x = random([batch, time, heads * size], dtype);
        ops.rope(
          x,
          table,
          null,
          empty([batch, time, heads * size], dtype),
          heads,
          heads - 1,
          3,
          false,
        );
        const positions = perToken(batch, time, (t) => (t * 7) % (time + 3));
        ops.rope(x, table, positions, x, heads, heads, 0, true);
      },
    );
  },
  attention() {
    // bf16 at 64, 96, 128: wgmma on Hopper; other multiples of 8: mma.sync; the rest and f32:
    // plain.
    for (const size of [64, 96, 128]) {
      for (const time of [1, 63, 64, 129, 300]) attention("bf16", 2, time, 4, 1, size);
      attention("bf16", 1, 517, 4, 4, size);
    }
    for (const size of [8, 32, 80]) {
      for (const time of [1, 63, 65, 200]) attention("bf16", 2, time, 4, 2, size);
    }
    for (const size of [20, 64])
      for (const time of [1, 33, 130]) attention("f32", 1, time, 4, 2, size);
    attention("bf16", 1, 50, 2, 1, 20);
  },
  attentionPaged() {
    // Two sequences over mixed-up pages of 32 tokens: a prompt, then single tokens beside a chunk.
    each([[64], [128], [24]], (dtype, size) => {
      const [heads, kvHeads] = [4, 2];
      const pages = filled([6, 2, kvHeads, 32, size], 0, dtype);
      const table = empty([2, 3], "i32");
      table.write(Int32Array.of(4, 0, 2, 5, 1, 3));
      for (const places of [
        Array.from({ length: 70 }, (_, i) => [0, i]),
        [[0, 70], ...Array.from({ length: 40 }, (_, i) => [1, i])],
        [
          [0, 71],
          [1, 40],
        ],
      ]) {
        const tokens = places.length;
        const of = (value) => perToken(1, tokens, (t) => value(places[t]));
        const [sequences, positions] = [of(([sequence]) => sequence), of(([, at]) => at)];
        const firstKey = of(([, at]) => Math.max(0, at - 45));
        const qkv = random([1, tokens, (heads + 2 * kvHeads) * size], dtype);
        const o = empty([1, tokens, heads * size], dtype);
        for (const first of [null, firstKey]) {
          ops.attentionPaged(
            qkv,
            pages,
            table,
            sequences,
            positions,
            first,
            null,
            o,
            heads,
            kvHeads,
            0.125,
          );
        }
      }
    });
  },
  attentionPagedStep() {
    // One token of each sequence, around the units of 512 keys: few tokens and many.
    each([[64], [128], [24]], (dtype, size) => {
      for (const [tokens, heads, kvHeads] of [
        [3, 8, 1],
        [150, 4, 2],
      ]) {
        const pages = filled([6, 2, kvHeads, 32, size], 0, dtype);
        const table = integers([tokens, 40], 6);
        const positions = perToken(1, tokens, (t) => [0, 63, 64, 511, 512, 1279][t % 6]);
        const firstKey = perToken(1, tokens, (t) => [0, 0, 40, 500, 0, 700][t % 6]);
        const angles = random([1280, size / 2, 2]);
        const qkv = random([1, tokens, (heads + 2 * kvHeads) * size], dtype);
        const o = empty([1, tokens, heads * size], dtype);
        for (const first of [null, firstKey]) {
          for (const turned of [null, angles]) {
            ops.attentionPaged(
              qkv,
              pages,
              table,
              null,
              positions,
              first,
              turned,
              o,
              heads,
              kvHeads,
              0.125,
            );
          }
        }
      }
    });
  },
  normLinear() {
    // Rows of one kernel and more; widths of the copy engine, of other loads, and odd.
    const shapes = [
      [1, 2048, 70],
      [3, 5632, 34],
      [8, 264, 4300],
      [16, 72, 18],
      [17, 64, 32],
      [2, 7, 6],
    ];
    each(shapes, (dtype, rows, inputs, outputs) => {
      const [x, skip] = [1, 2].map(() => random([rows, inputs], dtype));
      const [norm, weight] = [random([inputs], dtype), random([outputs, inputs], dtype)];
      const r = empty([rows, inputs], dtype);
      for (const swiglu of [false, true]) {
        const y = empty([rows, swiglu ? outputs / 2 : outputs], dtype);
        ops.normLinear(x, null, norm, weight, null, y, 1e-5, swiglu);
        ops.normLinear(x, skip, norm, weight, r, y, 1e-5, swiglu);
      }
    });
  },
  latestIds() {
    const latest = integers([5], 100);
    const source = perToken(1, 300, (t) => (t % 6) - 1);
    ops.latestIds(integers([1, 300], 100), source, latest, empty([1, 300], "i32"));
  },
  attentionCached() {
    each([[64], [128], [24]], (dtype, size) => {
      const [batch, heads, kvHeads] = [2, 4, 2];
      const cache = filled([batch, 2, kvHeads, 700, size], 0, dtype);
      let position = 0;
      for (const time of [37, 1, 3, 400, 1, 1]) {
        const qkv = random([batch, time, (heads + 2 * kvHeads) * size], dtype);
        const o = empty([batch, time, heads * size], dtype);
        const start = position;
        const firstKey = perToken(batch, time, (t) => Math.max(0, start + t - 45));
        for (const first of [null, firstKey])
          ops.attentionCached(qkv, cache, first, o, heads, kvHeads, position, 0.125);
        position += time;
      }
    });
  },
  swiglu() {
    each(
      [
        [1, 1],
        [301, 177],
        [64, 512],
        [1024, 704],
      ],
      (dtype, rows, ffn) => {
        const gateUp = random([rows, 2 * ffn], dtype);
        ops.swigluForward(gateUp, empty([rows, ffn], dtype));
        ops.swigluBackward(random([rows, ffn], dtype), gateUp, empty([rows, 2 * ffn], dtype));
      },
    );
  },
  fp8() {
    // Whole tiles of 128 x 128, parts of them, and one row.
    const sizes = [
      [1, 16],
      [33, 144],
      [130, 272],
      [256, 128],
      [300, 2048],
      [40, 3072],
      [5, 5632],
    ];
    for (const [rows, width] of sizes) {
      const x = random([rows, width], "bf16");
      const [maximum, scale] = [empty([1]), empty([1])];
      const padded = Math.ceil(rows / 16) * 16;
      const copy = (format, shape = [rows, width]) => [
        empty(shape, format),
        empty([shape[1], padded], format),
      ];
      ops.fp8Maximum(x, maximum);
      for (const format of ["f8e4m3", "f8e5m2"]) {
        const [asRows, columns] = copy(format);
        ops.fp8Cast(x, maximum, asRows, columns, scale);
        ops.fp8Cast(x, maximum, asRows, null, scale);
        ops.fp8Cast(x, maximum, null, columns, scale);
        for (const part of [asRows, columns]) ops.fp8Statistics(part, scale, empty([4]));
      }
      const [asRows, columns] = copy("f8e4m3");
      const [r, rstd, weight] = [
        empty([rows, width], "bf16"),
        empty([rows]),
        random([width], "bf16"),
      ];
      ops.fp8RmsNormForward(x, x, weight, r, asRows, columns, scale, rstd, 1e-5);
      ops.fp8RmsNormForward(x, null, weight, null, asRows, null, scale, rstd, 1e-5);

      const [gateUp, slope] = [random([rows, 2 * width], "bf16"), empty([1])];
      ops.fp8SwigluForward(gateUp, empty([rows, width], "bf16"), maximum, slope);
      for (const format of ["f8e4m3", "f8e5m2"]) {
        const [dRows, dColumns] = copy(format, [rows, 2 * width]);
        ops.fp8SwigluBackward(x, maximum, gateUp, slope, dRows, dColumns, scale);
        ops.fp8SwigluBackward(x, maximum, gateUp, slope, null, dColumns, scale);
      }

      const other = empty([32, width], "f8e4m3");
      ops.fp8Cast(random([32, width], "bf16"), maximum, other, null, scale);
      for (const dtype of dtypes) {
        const c = filled([rows, 32], 0, dtype);
        ops.fp8Gemm(asRows, scale, other, scale, c, true);
        ops.fp8GemmAccumulate(asRows, scale, other, scale, c, false);
      }
    }
  },
  linearCrossEntropy() {
    // Rows in registers, in registers and shared memory, odd rows, and rows too long to hold. The
    // last size but one has several chunks.
    each(
      [
        [1, 8, 5],
        [77, 16, 2051],
        [130, 16, 4096],
        [70, 16, 32_000],
        [3, 8, 128_256],
      ],
      (dtype, rows, hidden, classes) => {
        const [x, weight] = [random([rows, hidden], dtype), random([classes, hidden], dtype)];
        const targets = integers([rows], classes);
        const [dx, dWeight] = [empty([rows, hidden], dtype), empty([classes, hidden])];
        const [losses, greedy] = [empty([rows]), empty([rows], "i32")];
        ops.linearCrossEntropy(
          x,
          weight,
          targets,
          null,
          empty([]),
          null,
          null,
          dx,
          dWeight,
          0,
          false,
        );
        ops.linearCrossEntropy(
          x,
          weight,
          targets,
          null,
          empty([]),
          null,
          null,
          null,
          null,
          -100,
          false,
        );
        ops.linearCrossEntropy(x, weight, targets, null, null, losses, null, null, null, 0, true);
        ops.linearCrossEntropy(x, weight, targets, losses, null, null, null, dx, dWeight, 0, false);
        ops.linearCrossEntropy(x, weight, targets, null, null, losses, greedy, null, null, 0, true);
      },
    );
  },
  crossEntropy() {
    each(
      [
        [1, 5],
        [77, 5000],
        [33, 8192],
        [5, 32_000],
        [3, 70_001],
      ],
      (dtype, rows, classes) => {
        const [logits, targets] = [random([rows, classes], dtype, 4), integers([rows], classes)];
        const statistics = empty([2, rows]);
        ops.crossEntropyForward(logits, targets, empty([]), statistics, 0);
        ops.crossEntropyBackward(
          filled([], 1),
          logits,
          targets,
          statistics,
          empty([rows, classes], dtype),
          0,
        );
      },
    );
  },
  optimizer() {
    each(flat, (dtype, size) => {
      const weight = random([size], dtype);
      const master = dtype === "bf16" ? random([size]) : null;
      const [m, v, decision] = [filled([size], 0), filled([size], 0), empty([8])];
      const squares = empty([1]);
      const gradient = random([size], "f32", 0.1);
      ops.sumOfSquares(gradient, squares);
      ops.sumOfSquares(random([size], dtype), squares);
      const state = filled([8 + 2 * 16], 0);
      for (let step = 0; step < 3; step++) {
        ops.stepGuard(filled([1], 3), squares, state, decision, 1, 0.9, 0.95, 6, 6, 2);
      }
      ops.adamw(weight, master, gradient, m, v, decision, 1e-3, 0.9, 0.95, 1e-8, 0.1);
    });
  },
  muon() {
    each(flat, (dtype, size) => {
      const [grad, m, direction] = [random([size]), random([size]), empty([size], dtype)];
      for (const apply of [1, 0]) {
        const decision = empty([8]);
        decision.write(Float32Array.from([apply, 0.5, 1, 1, 0, 0, 0, 0]));
        ops.muonMomentum(grad, m, direction, decision, 0.95);
        const master = dtype === "bf16" ? random([size]) : null;
        ops.muonUpdate(random([size], dtype), master, direction, decision, 1e-3, 2, 0.1);
      }
      ops.scaleAdd(direction, random([size], dtype), 2, -0.5);
    });
  },
  elements() {
    each(flat, (dtype, size) => {
      const [x, y] = [random([size], dtype), empty([size], dtype)];
      ops.fill(y, 2);
      ops.arange(y, 0, 1);
      ops.philoxUniform(y, -1, 1, 1, 3);
      for (const offset of [0, 3]) ops.dropout(x, y, 0.1, 1, offset);
      ops.cast(x, empty([size], dtype === "f32" ? "bf16" : "f32"));
      ops.accumulate(x, y);
      ops.accumulateScaled(x, filled([1], 0.5), y);
      for (const kind of ["exp", "gelu", "rsqrt"]) {
        ops.unary(x, y, kind);
        ops.unaryBackward(x, x, y, kind);
      }
      ops.binary(x, x, y, "mul");
      ops.binary(x, random([1], dtype), y, "pow");
      ops.binary(x, x, empty([size], "i32"), "lt");
      ops.where(integers([size], 2), x, x, y);
    });
    each(
      [
        [5, 7, 11],
        [16, 33, 64],
      ],
      (dtype, a, b, c) => {
        const x = random([a, b, c], dtype);
        ops.binary(x, random([c], dtype), empty([a, b, c], dtype), "add");
        ops.binary(x, random([b, 1], dtype), empty([a, b, c], dtype), "add");
        ops.binary(random([a, 1, 1], dtype), x, empty([a, b, c], dtype), "div");
      },
    );
  },
  reduce() {
    const shapes = [
      [1, 1],
      [101, 997],
      [3, 150_001],
      [50_001, 3],
      [64, 4096],
      [4096, 64],
    ];
    each(shapes, (dtype, rows, columns) => {
      const x = random([rows, columns], dtype);
      for (const kind of ["sum", "mean", "max", "min"]) {
        ops.reduce(x, empty([columns], dtype), [0], kind);
        ops.reduce(x, empty([rows], dtype), [1], kind);
        ops.reduce(x, empty([], dtype), [0, 1], kind);
      }
    });
    ops.reduce(integers([33, 65], 9), empty([33], "i32"), [1], "sum");
    ops.reduce(random([9, 20, 7]), empty([20]), [0, 2], "sum");
  },
  moving() {
    each(
      [
        [7, 33, 65],
        [4, 64, 128],
      ],
      (dtype, a, b, c) => {
        const x = random([a, b, c], dtype);
        ops.permute(x, empty([a, c, b], dtype), [0, 2, 1]);
        ops.permute(x, empty([b, a, c], dtype), [1, 0, 2]);
        ops.permute(x, empty([c, b, a], dtype), [2, 1, 0]);
        ops.slice(x, empty([a - 1, b - 2, c - 8], dtype), [1, 2, 8]);
        ops.slice(x, empty([a, b, c - 3], dtype), [0, 0, 1]);
        ops.sliceWrite(random([a - 1, b, c], dtype), x, [1, 0, 0]);
        for (const axis of [0, 1, 2]) {
          const index = integers([a, b, c], [a, b, c][axis]);
          ops.gather(x, index, empty([a, b, c], dtype), axis);
          ops.scatterAdd(x, index, filled([a, b, c], 0, dtype), axis);
        }
      },
    );
  },
  softmax() {
    each(
      [
        [1, 1],
        [101, 997],
        [300, 512],
        [3, 8192],
        [2, 40_000],
        [3, 100_001],
        [2000, 64],
      ],
      (dtype, rows, columns) => {
        const [x, y] = [random([rows, columns], dtype), empty([rows, columns], dtype)];
        for (const log of [false, true]) {
          ops.softmax(x, y, log);
          ops.softmaxBackward(x, y, empty([rows, columns], dtype), log);
        }
      },
    );
  },
  choosing() {
    each(
      [
        [1, 1],
        [300, 311],
        [3, 32_000],
        [2, 70_001],
      ],
      (dtype, rows, classes) => {
        const [logits, ids] = [random([rows, classes], dtype), empty([rows], "i32")];
        ops.argmax(logits, ids);
        ops.sample(logits, ids, 0, 0, 1, 1, 0);
      },
    );
    ops.argmax(integers([40, 100], 17), empty([40], "i32"));
  },
  sampling() {
    // A part of the 1,024 threads, several rounds of them, and more elements than CUB sorts in one
    // block. In each round every thread reads the sums of all warps, and rows are sorted in turn.
    // More rounds or rows would only slow racecheck down.
    each(
      [
        [1, 1],
        [5, 311],
        [2, 3001],
        [1, 20_000],
      ],
      (dtype, rows, classes) => {
        const [logits, ids] = [random([rows, classes], dtype), empty([rows], "i32")];
        ops.sample(logits, ids, 0.8, 0, 1, 1, 0);
        ops.sample(logits, ids, 0.8, Math.min(50, classes), 0.9, 1, 0);
        // Temperature, top-p, min-p and three penalties are all 0.75.
        const settings = filled([rows, 6], 0.75);
        const [counts, bias] = [filled([rows, classes], 1, "i32"), random([rows, classes])];
        // Top-k, the seed's two halves, the draw, and the rows of the tables.
        const numbers = (topK, table) => {
          const values = empty([rows, 6], "i32");
          const row = (i) => [topK, 1, 0, i, table ? i : -1, table ? i : -1];
          values.write(Int32Array.from(Array.from({ length: rows }, (_, i) => row(i)).flat()));
          return values;
        };
        const logprobs = empty([rows]);
        ops.sampleRows(logits, settings, numbers(0, false), null, null, ids, null);
        ops.sampleRows(logits, settings, numbers(7, true), counts, bias, ids, logprobs);
        ops.sampleRows(logits, filled([rows, 6], 1), numbers(0, false), null, null, ids, logprobs);
      },
    );
  },
};

const called = new Set();
for (const [name, op] of Object.entries(ops)) {
  ops[name] = (...args) => {
    called.add(name);
    return op(...args);
  };
}
const unknown = [...chosen].filter((name) => !(name in sweeps));
if (unknown.length > 0) throw new Error(`no sweep ${unknown}: ${Object.keys(sweeps)}`);
for (const [name, sweep] of Object.entries(sweeps)) {
  if (chosen.size > 0 && !chosen.has(name)) continue;
  sweep();
  await filled([1], 0).read();
}
const missing = Object.keys(ops).filter((name) => !called.has(name));
if (chosen.size === 0 && missing.length > 0) throw new Error(`never called: ${missing.join(" ")}`);
console.log(`${called.size} operations ran`);
