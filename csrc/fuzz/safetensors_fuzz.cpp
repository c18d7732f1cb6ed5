// Fuzzing of the safetensors parser: `npm run fuzz -- --only safetensors` builds it with libFuzzer
// and sanitizers (-DLF_LIBFUZZER, clang). Without that flag, any compiler builds it as a program
// that runs the files it is given.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

#include "io/safetensors.h"

namespace {

using namespace llamaforge::io;

[[noreturn]] void broken(const char* what) {
  std::fprintf(stderr, "broken promise: %s\n", what);
  std::abort();
}

// Checks the promises of an accepted header, without the parser's own code.
void check_promises(const SafetensorsHeader& header, std::string_view file) {
  uint64_t sum = 0;
  for (const TensorEntry& entry : header.entries) {
    if (entry.begin > entry.end || entry.end > file.size() - header.data_offset) {
      broken("a tensor lies outside the file");
    }
    unsigned __int128 bytes = entry.dtype->bytes;
    for (int64_t dim : entry.shape) {
      if (dim < 0) broken("a negative dimension");
      bytes *= static_cast<unsigned __int128>(dim);
    }
    if (bytes != entry.end - entry.begin) broken("shape and offsets disagree");
    sum += entry.end - entry.begin;
  }
  // No overlap and no hole means that the sizes add up to the data.
  if (sum != file.size() - header.data_offset) broken("the data is not covered exactly");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string_view file(reinterpret_cast<const char*>(data), size);
  SafetensorsHeader header;
  try {
    header = parse_safetensors(file);
  } catch (const FormatError&) {
    return 0;
  }
  check_promises(header, file);
  // An accepted header can be written, and is identical when read again. Order matters to the
  // writer, which lays tensors out as given, so only files laid out in header order are compared.
  uint64_t next = 0;
  for (const TensorEntry& entry : header.entries) {
    if (entry.begin != next) return 0;
    next = entry.end;
  }
  std::string again = format_safetensors_header(header.entries, header.metadata);
  again.append(next, '\0');
  SafetensorsHeader second = parse_safetensors(again);
  if (second.metadata != header.metadata) broken("metadata changed on the way round");
  if (second.entries.size() != header.entries.size()) broken("tensors were lost");
  for (size_t i = 0; i < second.entries.size(); ++i) {
    const TensorEntry& a = header.entries[i];
    const TensorEntry& b = second.entries[i];
    if (a.name != b.name || a.dtype != b.dtype || a.shape != b.shape || a.begin != b.begin ||
        a.end != b.end) {
      broken("a tensor changed on the way round");
    }
  }
  return 0;
}

#ifndef LF_LIBFUZZER
#include "fuzz/run_files.h"
#endif
