/**
 * Facts about the code that a process runs, from the contents of its files. Ranks with different
 * facts would not compute the same bits.
 */
import { createHash } from "node:crypto";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { dirname, extname, join } from "node:path";
import { fileURLToPath } from "node:url";
import type { Device } from "../core/device.js";
import { buildInfo, cudaInfo } from "../core/native.js";
import { addonFile } from "../core/native-load.js";

/** The library's own folder, dist/ in the package. */
const library = fileURLToPath(new URL("..", import.meta.url));

/**
 * Facts about this process's build, under the names that an error shows. Reads some 30 MB of files.
 */
export function buildFacts(device: Device): Record<string, string> {
  const { version, compiler, instructionSet } = buildInfo();
  const addon = addonFile(join(library, ".."));
  const facts: Record<string, string> = {
    "LlamaForge's version": `${version}, ${compiler}`,
    "LlamaForge's program": programHash(),
    "the addon": hashOf(addon),
    "Node.js": process.version,
  };
  if (device.type === "cpu") {
    const { LLAMAFORGE_GLOO_PLUGIN: given } = process.env;
    const gloo = given ?? join(dirname(addon), "libllamaforge_gloo.so");
    facts["the Gloo plugin"] = existsSync(gloo) ? hashOf(gloo) : "none";
    // Kernels of another vector width give other bits.
    facts["CPU kernels"] = instructionSet;
  } else {
    const { plugin, libraries } = cudaInfo();
    facts["the CUDA plugin"] = hashOf(plugin);
    // Their paths may differ.
    facts["CUDA's libraries"] = libraries.map((text) => text.replace(/ from .*/s, "")).join(", ");
  }
  return facts;
}

/** Hash of all modules of the library and their names. */
function programHash(): string {
  const extension = extname(fileURLToPath(import.meta.url));
  const hash = createHash("sha256");
  const names = readdirSync(library, { recursive: true, encoding: "utf8" });
  for (const name of names.filter((each) => each.endsWith(extension)).sort()) {
    hash.update(`${name}\0`).update(readFileSync(join(library, name)));
  }
  return short(hash.digest("hex"));
}

function hashOf(file: string): string {
  return short(createHash("sha256").update(readFileSync(file)).digest("hex"));
}

function short(hash: string): string {
  return hash.slice(0, 16);
}
