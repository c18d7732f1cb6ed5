import { createHash } from "node:crypto";
import { expect, test } from "vitest";
import { PythonRandom } from "../../lib/eval/python-random.js";

// The expected values are what python3 prints for random.Random(seed).

const range = (count: number) => Array.from({ length: count }, (_, i) => i);
const seeded = () => new PythonRandom(1234);

test("random() gives Python's numbers", () => {
  const random = seeded();
  expect([random.random(), random.random(), random.random()]).toEqual([
    0.9664535356921388, 0.4407325991753527, 0.007491470058587191,
  ]);
});

test("sample() of a small population goes on like Python's", () => {
  const random = seeded();
  expect([1, 2, 3].map(() => random.sample(range(20), 5))).toEqual([
    [14, 3, 0, 2, 1],
    [2, 3, 11, 7, 0],
    [0, 19, 11, 15, 14],
  ]);
  expect(seeded().sample(range(7), 7)).toEqual([6, 3, 0, 4, 5, 2, 1]);
});

test("sample() of a large population goes on like Python's", () => {
  const random = seeded();
  const rows = range(39905);
  expect([1, 2, 3].map(() => random.sample(rows, 6))).toEqual([
    [28883, 7657, 490, 5940, 38156, 2288],
    [5500, 6450, 23241, 15519, 1142, 2019],
    [1038, 22681, 31735, 30379, 9735, 5982],
  ]);
});

test("sample() changes its way at Python's sizes", () => {
  const random = seeded();
  expect(random.sample(range(85), 6)).toEqual([56, 14, 0, 11, 74, 4]);
  expect(random.sample(range(86), 6)).toEqual([85, 10, 12, 45, 30, 2]);
  const fewer = seeded();
  expect(fewer.sample(range(21), 5)).toEqual([14, 3, 0, 2, 1]);
  expect(fewer.sample(range(22), 5)).toEqual([21, 2, 3, 11, 7]);
});

test("shuffled() gives Python's order", () => {
  expect(new PythonRandom(0).shuffled(range(10))).toEqual([7, 8, 1, 5, 3, 4, 2, 0, 9, 6]);
  const text = seeded().shuffled(range(700)).join(",");
  expect(createHash("sha256").update(text).digest("hex")).toBe(
    "8b3a1ee7c00c711009347b5c4b91b7a6e7e290dbe7742fec8cf1a506e227bcad",
  );
});

test.each([
  [0, [864, 394, 776, 911]],
  [1, [137, 582, 867, 821]],
  [2 ** 32 - 1, [650, 634, 208, 220]],
  [2 ** 32, [115, 359, 427, 957]],
  [2 ** 53 - 1, [96, 574, 228, 770]],
  [-1234, [989, 796, 451, 119]],
])("seed %d is Python's", (seed, expected) => {
  expect(new PythonRandom(seed).sample(range(1000), 4)).toEqual(expected);
});
