/**
 * Runs before every test file (vitest.config.ts). With LLAMAFORGE_TEST_DEVICE=cuda:0 the same tests run on a GPU: tensors
 * that do not name a device are made there.
 */
import { defaultDevice, parseDevice, setDefaultDevice } from "../../lib/core/device.js";

const name = process.env.LLAMAFORGE_TEST_DEVICE;
if (name) setDefaultDevice(parseDevice(name));

/** Whether tests run on a GPU: for what is a matter of the CPU alone, as its threads are. */
export const onGpu = (): boolean => defaultDevice().type === "cuda";
