/**
 * A rank tries the addresses of MASTER_ADDR: csrc/comm/frame.cpp with a fake resolver and a fake
 * `poll`.
 */
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { canCompileSources, compile } from "../support/cpp.js";

/**
 * A name with three addresses: two are silent, the third answers after 50 ms, as a remote host
 * does.
 */
const program = `
  #include <arpa/inet.h>
  #include <netdb.h>
  #include <poll.h>
  #include <cstdio>
  #include <thread>
  #include "comm/frame.h"
  using namespace llamaforge::comm;

  static int port = 0, polls = 0;

  int getaddrinfo(const char*, const char*, const addrinfo*, addrinfo** found) {
    static sockaddr_in address = {};
    static addrinfo entries[3] = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    inet_pton(AF_INET, "127.0.0.1", &address.sin_addr);
    for (int i = 0; i < 3; ++i) {
      entries[i].ai_family = AF_INET;
      entries[i].ai_addr = reinterpret_cast<sockaddr*>(&address);
      entries[i].ai_addrlen = sizeof address;
      entries[i].ai_next = i < 2 ? &entries[i + 1] : nullptr;
    }
    *found = entries;
    return 0;
  }
  void freeaddrinfo(addrinfo*) {}

  extern "C" int poll(pollfd*, nfds_t, int timeout) {
    std::printf("%d ", timeout);
    const bool answers = ++polls == 3 && timeout >= 50;
    std::this_thread::sleep_for(Milliseconds(answers ? 50 : timeout));
    return answers;
  }

  int main(int, char** arguments) {
    const int listener = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in own = {};
    own.sin_family = AF_INET;
    own.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t bytes = sizeof own;
    if (bind(listener, reinterpret_cast<sockaddr*>(&own), bytes) != 0 || listen(listener, 8) != 0) return 1;
    getsockname(listener, reinterpret_cast<sockaddr*>(&own), &bytes);
    port = ntohs(own.sin_port);
    std::string why;
    const Socket socket = connect_to("host", port, Milliseconds(std::stoi(arguments[1])), why);
    std::puts(socket ? "connected" : why.c_str());
  }`;

test.runIf(canCompileSources)(
  "the addresses after a silent one have their share of the time",
  () => {
    const folder = mkdtempSync(join(tmpdir(), "llamaforge-connect-"));
    try {
      const sources = ["csrc/comm/frame.cpp"];
      const binary = compile(join(folder, "main"), { text: program, sources });
      const tried = (ms: number) => execFileSync(binary, [`${ms}`], { encoding: "utf8" }).trim();

      // One second at most, so that a silent first address does not use up the time of the start.
      expect(tried(60_000)).toMatch(/^1000 1000 1000 connected$/);
      const [first, second, third, ...end] = tried(900).split(" ");
      expect(end).toEqual(["connected"]);
      for (const share of [first, second, third]) {
        expect(Number(share)).toBeGreaterThan(200);
        expect(Number(share)).toBeLessThanOrEqual(300);
      }
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  },
  120_000,
);
