import { join } from "node:path";
import type { RunConfig } from "../config/index.js";
import type { Mixture } from "../data/mixture.js";
import { ShardCheck } from "../data/shard-check.js";
import type { World } from "../dist/world.js";

/** File in a run's folder that records how far its data has been hashed. */
export const shardCheckFile = "data-verified.json";

/**
 * Starts to hash the data of a run. One process per host does this, because each host may have its
 * own copy.
 * @throws DataError naming a changed shard, if damage stops the run and shows at once
 */
export async function startShardCheck(
  config: RunConfig,
  run: {
    mixture: Mixture;
    heldOut: Mixture | null;
    world: World | null;
    onNotice: (message: string) => void;
  },
): Promise<ShardCheck | null> {
  const { mixture, heldOut, world, onNotice } = run;
  const onDamage = config.data.verifyShards;
  const files = [...mixture.sources, ...(heldOut?.sources ?? [])].flatMap(
    ({ dataset }) => dataset.hashedFiles,
  );
  if (onDamage === "off" || files.length === 0 || (world?.localRank ?? 0) !== 0) return null;
  const isFirst = (world?.rank ?? 0) === 0;
  const memory = isFirst ? join(config.out, shardCheckFile) : null;
  const check = new ShardCheck(files, { onDamage, memory, onNotice });
  await check.start();
  return check;
}
