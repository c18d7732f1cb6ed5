// Lets a binary that GCC 12 linked load with the libstdc++ of GCC 11, which systems with glibc 2.34
// have (RHEL 9 and its relatives, Amazon Linux 2023).
//
// GCC 12 gave std::condition_variable::wait() a second version, GLIBCXX_3.4.30, which differs from the
// old GLIBCXX_3.4.11 in `noexcept` alone. Every libstdc++ has the old one, GCC 12's and later ones
// included. The linker takes the newest, and Debian's libraries are linked already, so the binary is
// changed: its need of the new version becomes one of the old.
import { readFileSync, writeFileSync } from "node:fs";

const waiting = {
  symbol: "_ZNSt18condition_variable4waitERSt11unique_lockISt5mutexE",
  version: "GLIBCXX_3.4.30",
  older: "GLIBCXX_3.4.11",
};

/** Hash of a version's name in an ELF file: the System V ABI's function. */
function hashOf(name) {
  let hash = 0;
  for (const byte of Buffer.from(name)) {
    hash = ((hash << 4) + byte) >>> 0;
    const high = hash & 0xf0000000;
    hash = (hash ^ (high >>> 24) ^ high) >>> 0;
  }
  return hash;
}

/** Sections of a 64-bit little-endian ELF file, by name: [offset, size]. */
function sectionsOf(elf) {
  const table = Number(elf.readBigUInt64LE(40));
  const [size, count, names] = [58, 60, 62].map((at) => elf.readUInt16LE(at));
  const header = (index) => table + index * size;
  const part = (at) => [at + 24, at + 32].map((place) => Number(elf.readBigUInt64LE(place)));
  const [strings] = part(header(names));
  const sections = new Map();
  for (let index = 0; index < count; index++) {
    const at = header(index);
    sections.set(textAt(elf, strings + elf.readUInt32LE(at)), part(at));
  }
  return sections;
}

const textAt = (elf, from) => elf.toString("latin1", from, elf.indexOf(0, from));

/** The versions of symbols that a file needs: place of the entry, name and index. */
function needsOf(elf, [start], strings) {
  const needs = [];
  for (let library = start; ; ) {
    for (let entry = library + elf.readUInt32LE(library + 8); ; ) {
      const version = textAt(elf, strings + elf.readUInt32LE(entry + 8));
      needs.push({ entry, version, index: elf.readUInt16LE(entry + 6) });
      const next = elf.readUInt32LE(entry + 12);
      if (next === 0) break;
      entry += next;
    }
    const next = elf.readUInt32LE(library + 12);
    if (next === 0) return needs;
    library += next;
  }
}

/**
 * Changes a file in place if it needs GLIBCXX_3.4.30 for std::condition_variable::wait() alone.
 * @returns whether it was changed
 */
export function useOlderSymbols(file) {
  const elf = readFileSync(file);
  const sections = sectionsOf(elf);
  if (!sections.has(".gnu.version_r")) return false;
  const [strings, stringsSize] = sections.get(".dynstr");
  const need = needsOf(elf, sections.get(".gnu.version_r"), strings).find(
    ({ version }) => version === waiting.version,
  );
  if (!need) return false;
  const [symbols, symbolsSize] = sections.get(".dynsym");
  const [versions] = sections.get(".gnu.version");
  for (let index = 0; index < symbolsSize / 24; index++) {
    if ((elf.readUInt16LE(versions + 2 * index) & 0x7fff) !== need.index) continue;
    const name = textAt(elf, strings + elf.readUInt32LE(symbols + 24 * index));
    if (name !== waiting.symbol) return false;
  }
  const text = elf.subarray(strings, strings + stringsSize);
  const place = text.indexOf(`\0${waiting.older}\0`, 0, "latin1");
  if (place < 0) return false;
  elf.writeUInt32LE(hashOf(waiting.older), need.entry);
  elf.writeUInt32LE(place + 1, need.entry + 8);
  writeFileSync(file, elf);
  return true;
}
