/** Runs in which one rank fails, and the results of the others. */
import { expect } from "vitest";
import { device, type RankResult, startRanks } from "./comm-ranks.js";

export const timeoutMs = device === "cpu" ? 2000 : 5000;
export const run = (what: string, who: number, worldSize = 2, more: Record<string, unknown> = {}) =>
  startRanks("trouble", worldSize, { options: { what, who, timeoutMs, ...more } });

export const endsWith6 = ({ code, signal, stderr }: RankResult) => {
  expect({ code, signal, stderr }).toMatchObject({ code: 6, signal: null });
};

/** Runs the failure. Returns the results of the other ranks and the time until they ended. */
export async function othersOf(
  what: string,
  who: number,
  worldSize = 2,
  more: Record<string, unknown> = {},
) {
  const ranks = await run(what, who, worldSize, more);
  await Promise.all(ranks.map(({ says }) => says((value) => value === "ready")));
  const from = performance.now();
  const others = await Promise.all(
    ranks.filter((_, rank) => rank !== who).map(({ ended }) => ended),
  );
  const took = performance.now() - from;
  const culprit = ranks[who] as (typeof ranks)[number];
  return { others, took, culprit };
}

/**
 * Time beyond the timeout: the verdict, two seconds for a program to end itself, and a busy
 * machine.
 */
export const latestMs = timeoutMs + 15_000;
