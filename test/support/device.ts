/**
 * Runs before every test file (vitest.config.ts). With LLAMAFORGE_TEST_DEVICE=cuda:0 the tests run
 * on a GPU: it becomes the default device of new tensors.
 */
import { defaultDevice, parseDevice, setDefaultDevice } from "../../lib/core/device.js";

const name = process.env.LLAMAFORGE_TEST_DEVICE;
if (name) setDefaultDevice(parseDevice(name));

/** Whether tests run on a GPU. Tests of the CPU alone, such as its threads, ask for it. */
export const onGpu = (): boolean => defaultDevice().type === "cuda";
