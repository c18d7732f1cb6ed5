// Downloads packages of a Debian release without touching the system's own: apt-get reads its source
// list from, and writes into, a folder that is given. Used by build-arm64.mjs and fetch-cuda12.mjs.
import { mkdirSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";

/** Debian's public mirror. */
const mirror = "http://deb.debian.org/debian";

/**
 * Downloads packages into `folder`/debs, without those that they depend on.
 * @param options `suite` and `components` of the release; `architecture`: of another processor than
 *   this machine's; `size`: of the download, which is printed
 * @param run runs (what, command, args, cwd), and ends the process if the command fails
 * @returns paths of the packages' files
 */
export function downloadPackages(folder, packages, options, run) {
  const { suite, components, architecture, size } = options;
  for (const part of ["lists/partial", "cache/archives/partial", "debs"])
    mkdirSync(join(folder, part), { recursive: true });
  const sources = join(folder, "sources.sources");
  const entries = {
    Types: "deb",
    URIs: mirror,
    Suites: suite,
    Components: components,
    ...(architecture && { Architectures: architecture }),
    "Signed-By": "/usr/share/keyrings/debian-archive-keyring.gpg",
  };
  const lines = Object.entries(entries).map(([name, value]) => `${name}: ${value}\n`);
  writeFileSync(sources, lines.join(""));
  const settings = {
    "Dir::Etc::sourcelist": sources,
    "Dir::Etc::sourceparts": "-",
    "Dir::State::Lists": join(folder, "lists"),
    "Dir::Cache": join(folder, "cache"),
    "APT::Sandbox::User": "root",
    // Packages of another processor are none of this system's.
    ...(architecture && {
      "Dir::State::status": "/dev/null",
      "APT::Architecture": architecture,
      "APT::Architectures::": architecture,
    }),
  };
  const own = Object.entries(settings).flatMap(([name, value]) => ["-o", `${name}=${value}`]);
  const debs = join(folder, "debs");
  run("reads Debian's list of packages", "apt-get", ["-qq", ...own, "update"], folder);
  run(`downloads ${size}`, "apt-get", ["-qq", ...own, "download", ...packages], debs);
  return readdirSync(debs).map((name) => join(debs, name));
}
