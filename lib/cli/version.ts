import { createRequire } from "node:module";

// lib/cli in the repository and dist/cli in the package are both two levels below package.json.
const manifest = createRequire(import.meta.url)("../../package.json") as { version: string };

export const packageVersion = manifest.version;
