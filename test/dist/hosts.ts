/**
 * Two hosts on one machine: network namespaces connected by a pair of virtual cables. They need
 * root or CAP_NET_ADMIN.
 */
import { execFileSync } from "node:child_process";
import { mkdirSync, rmSync, writeFileSync } from "node:fs";

/** A host of a run. */
export interface Host {
  address: string;
  /** The command that starts a program on this host. */
  command: readonly string[];
}

function ip(...args: string[]): void {
  execFileSync("ip", args, { stdio: ["ignore", "ignore", "pipe"], encoding: "utf8" });
}

/** Two hosts that reach only each other. */
export class TwoHosts {
  readonly hosts: readonly [Host, Host];
  readonly #names: readonly [string, string];

  private constructor(names: readonly [string, string], network: string) {
    this.#names = names;
    const host = (index: 0 | 1): Host => ({
      address: `${network}.${index + 1}`,
      command: ["ip", "netns", "exec", names[index]],
    });
    this.hosts = [host(0), host(1)];
  }

  /** @throws Error with the output of `ip` if this process may not make namespaces */
  static open(): TwoHosts {
    const { pid } = process;
    const names = [`lf${pid}a`, `lf${pid}b`] as const;
    const two = new TwoHosts(names, `10.213.${pid % 250}`);
    try {
      for (const name of names) {
        ip("netns", "add", name);
        ip("-n", name, "link", "set", "lo", "up");
      }
      // Both ends are named cable0, each on its own host.
      ip(
        "-n",
        names[0],
        "link",
        "add",
        "cable0",
        "type",
        "veth",
        "peer",
        "cable0",
        "netns",
        names[1],
      );
      for (const [i, name] of names.entries()) {
        ip("-n", name, "address", "add", `${two.hosts[i]?.address}/24`, "dev", "cable0");
        ip("-n", name, "link", "set", "cable0", "up");
      }
      return two;
    } catch (error) {
      two.close();
      throw error;
    }
  }

  /** Unplugs the cable of the second host, or plugs it in again. */
  set connected(on: boolean) {
    ip("-n", this.#names[1], "link", "set", "cable0", on ? "up" : "down");
  }

  /** Sets /etc/hosts for programs started from now on, one line per address: ip-netns(8). */
  setNames(index: 0 | 1, lines: readonly string[]): void {
    const folder = `/etc/netns/${this.#names[index]}`;
    mkdirSync(folder, { recursive: true });
    writeFileSync(`${folder}/hosts`, `${["127.0.0.1 localhost", ...lines].join("\n")}\n`);
  }

  close(): void {
    for (const name of this.#names) {
      rmSync(`/etc/netns/${name}`, { recursive: true, force: true });
      try {
        ip("netns", "delete", name);
      } catch {
        // The namespace was never made.
      }
    }
  }
}

/** The reason why this machine cannot have two hosts; null if it can. */
export function whyNoHosts(): string | null {
  try {
    TwoHosts.open().close();
    return null;
  } catch (error) {
    const { stderr, message } = error as { stderr?: string; message: string };
    return (stderr || message).trim().split("\n")[0] as string;
  }
}
