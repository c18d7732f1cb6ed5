/**
 * Checks that the state of a run is finite, before it is saved and before the run reports that it
 * is done.
 */
import { zeros } from "../core/create.js";
import { native } from "../core/native.js";
import { scope } from "../core/scope.js";
import type { Tensor } from "../core/tensor.js";
import type { LanguageModel } from "../model/language-model.js";
import type { ParameterGroup } from "../nn/group.js";
import type { AdamW } from "../optim/adamw.js";

/**
 * Looks for weights and moments that are NaN or infinite, in one pass over them on the device.
 * Where several processes train together, all of them call it. Each checks the part that it owns,
 * and all get the same answer.
 * @returns names of the parameter groups with such values; empty if there are none
 */
export async function nonFiniteGroups(model: LanguageModel, optimizer: AdamW): Promise<string[]> {
  const { groups } = model.store;
  const sums = await agreed(model, (group, out) => {
    buffersOf(group, optimizer).forEach((buffer, index) => {
      const slot = out.view([1], index);
      native.sumOfSquares(buffer.native, slot.native);
      slot.dispose();
    });
  });
  if (sums.every((of) => of.every(Number.isFinite))) return [];
  // The squares of finite numbers may sum to infinity, so a second pass looks at each number.
  const suspects = groups.filter((_, index) => !sums[index]?.every(Number.isFinite));
  const own = new Set<ParameterGroup>();
  for (const group of suspects) {
    for (const buffer of buffersOf(group, optimizer)) {
      if (!(await buffer.toArray()).every(Number.isFinite)) own.add(group);
    }
  }
  const found = await agreed(model, (group, out) => {
    if (own.has(group)) native.fill(out.native, 1);
  });
  return groups
    .filter((_, index) => found[index]?.some((flag) => flag > 0))
    .map(({ name }) => name);
}

/**
 * Numbers for each group, averaged over the processes. A NaN, infinity or 1 of one process is
 * visible to all.
 */
async function agreed(
  { store }: LanguageModel,
  write: (group: ParameterGroup, out: Tensor) => void,
): Promise<number[][]> {
  return await scope(async () => {
    const all = zeros([store.groups.length, buffersPerGroup], { device: store.device });
    store.groups.forEach((group, index) => {
      const part = all.view([buffersPerGroup], index * buffersPerGroup);
      write(group, part);
      part.dispose();
    });
    store.parallel?.average(all);
    const values = await all.toArray();
    return store.groups.map((_, index) =>
      Array.from(values.slice(index * buffersPerGroup, (index + 1) * buffersPerGroup)),
    );
  });
}

const buffersPerGroup = 4;

function buffersOf(group: ParameterGroup, optimizer: AdamW): Tensor[] {
  const { m, v } = optimizer.moments(group);
  return [group.ownedWeights, m, v, ...(group.master ? [group.master] : [])];
}
