/** The optimizer's state in a training checkpoint. */
import { CheckpointError } from "../core/errors.js";
import { synchronize } from "../core/runtime.js";
import { scope } from "../core/scope.js";
import { type Tensor, untracked } from "../core/tensor.js";
import { later, turn } from "../core/turn.js";
import { overlap } from "../nn/group.js";
import type { AdamW } from "../optim/adamw.js";
import { type GuardCounts, readGuardState } from "../optim/guard.js";
import { HostCopies } from "./host-copies.js";
import { matchTensors } from "./load.js";
import type { StoredTensor, StoredTensors, TensorSource } from "./safetensors.js";

export const optimizerFile = "optimizer-state.safetensors";

/**
 * Copies the optimizer's state to the host: moments, master weights and the guard's state,
 * everything needed to continue with equal bits. Tensors are whole and named, however many
 * processes share them. With several processes, the rules of `weightSources` apply.
 */
export async function optimizerSources(
  optimizer: AdamW,
  copies = new HostCopies(),
): Promise<TensorSource[]> {
  const { store, guardState } = optimizer;
  const writes = store.parallel?.writes ?? true;
  const moments: Promise<TensorSource>[] = [];
  const masters: Promise<TensorSource>[] = [];
  for (const group of store.groups) {
    scope(() => {
      const { m } = optimizer.moments(group);
      const wholeM = store.whole(group, m);
      const wholeV = store.whole(group, optimizer.ownedSecond(group));
      const master = group.master && store.whole(group, group.master);
      if (!writes) return;
      const copy = (name: string, buffer: Tensor, shape: readonly number[], offset: number) =>
        later(copies.copy(name, buffer.view(shape, offset), shape));
      for (const { name, parameter, offset } of group.entries) {
        const { shape } = parameter;
        moments.push(copy(`${name}.m`, wholeM, shape, offset));
        if (optimizer.hasSecond(parameter)) {
          moments.push(copy(`${name}.v`, wholeV, shape, offset));
        }
        if (master) masters.push(copy(`${name}.master`, master, shape, offset));
      }
    });
    await turn();
  }
  if (!writes) return [];
  const guard = scope(() => copies.copy("guard.state", guardState, guardState.shape));
  return await Promise.all([guard, ...moments, ...masters]);
}

/**
 * Loads the optimizer's state.
 * @returns the numbers of steps that the guard has counted
 * @throws CheckpointError if the state is from another model, precision or guard window, or is
 *   impossible after any step: moments or weights that are not finite, second moments below 0,
 *   counters that contradict each other
 */
export async function loadOptimizer(
  optimizer: AdamW,
  stored: StoredTensors,
  source: string,
): Promise<GuardCounts> {
  const { guardState, store } = optimizer;
  const targets = optimizerTargets(optimizer);
  matchTensors(source, stored, [
    { name: "guard.state", shape: guardState.shape, dtypes: ["F32"] },
    ...targets.map(({ name, shape }) => ({ name, shape, dtypes: ["F32" as const] })),
  ]);
  const guard = stored.tensors.get("guard.state") as StoredTensor;
  const counts = readGuardState(new Float32Array((await guard.readBytes()).buffer));
  if (typeof counts === "string") {
    throw new CheckpointError(`${guard.path}: tensor guard.state: ${counts}`);
  }
  guard.readInto(guardState.native);
  for (const { name, shape, size, group, offset, write, allowed } of targets) {
    if (!overlap({ offset, size }, group.owned)) continue;
    const values = untracked(shape, "f32", store.device, "loadOptimizer");
    stored.tensors.get(name)?.readInto(values.native, allowed);
    write(values);
    values.dispose();
  }
  try {
    await synchronize(optimizer.store.device);
  } catch (cause) {
    throw new CheckpointError(
      `${source}: the optimizer's state could not be read: ${(cause as Error).message}`,
      { cause },
    );
  }
  return counts;
}

/** The tensors of the optimizer's file and their destinations. */
function optimizerTargets(optimizer: AdamW) {
  return optimizer.store.groups.flatMap((group) => {
    const { m } = optimizer.moments(group);
    return group.entries.flatMap(({ name, parameter, offset }) => {
      const place = { shape: parameter.shape, size: parameter.size, group, offset };
      const [number, square] = ["finite", "finite, not negative"] as const;
      const first = (values: Tensor) => group.writeOwned(m, offset, values);
      const second = (values: Tensor) => optimizer.writeSecond(group, offset, values);
      const weights = (values: Tensor) => group.write(offset, values);
      return [
        { name: `${name}.m`, write: first, allowed: number, ...place },
        ...(optimizer.hasSecond(parameter)
          ? [{ name: `${name}.v`, write: second, allowed: square, ...place }]
          : []),
        ...(group.master
          ? [{ name: `${name}.master`, write: weights, allowed: number, ...place }]
          : []),
      ];
    });
  });
}
