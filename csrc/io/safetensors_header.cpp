// The grammar of a safetensors header: two levels of JSON, and what must hold between its numbers.
#include <algorithm>
#include <numeric>

#include "io/json_cursor.h"
#include "io/safetensors.h"

namespace llamaforge::io {
namespace {

constexpr std::string_view kMetadataKey = "__metadata__";

class Parser {
 public:
  Parser(JsonCursor&& cursor, uint64_t data_bytes, const SafetensorsLimits& limits)
      : cursor_(std::move(cursor)), data_bytes_(data_bytes), limits_(limits) {}

  SafetensorsHeader parse() {
    if (cursor_.current() != '{') cursor_.fail("a header must start with '{'");
    cursor_.parse_members([&](std::string&& key) {
      if (key == kMetadataKey) {
        if (has_metadata_) cursor_.fail("__metadata__ is given twice");
        has_metadata_ = true;
        parse_metadata();
      } else {
        parse_entry(std::move(key));
      }
    });
    cursor_.skip_space();
    if (!cursor_.at_end()) cursor_.fail("unexpected bytes after the header's closing brace");
    check_unique_names();
    check_layout();
    return std::move(header_);
  }

 private:
  [[noreturn]] static void fail_tensor(const TensorEntry& entry, const std::string& what) {
    throw FormatError("tensor " + quoted(entry.name) + ": " + what);
  }

  void parse_metadata() {
    if (cursor_.peek() != '{') cursor_.fail("__metadata__ must be an object of strings");
    size_t bytes = 0;
    cursor_.parse_members([&](std::string&& key) {
      if (header_.metadata.size() >= limits_.entries) {
        cursor_.fail("__metadata__ has more than " + std::to_string(limits_.entries) + " keys");
      }
      if (cursor_.peek() != '"') cursor_.fail("the value of metadata " + quoted(key) + " must be a string");
      std::string value = cursor_.parse_string(limits_.metadata_bytes);
      bytes += key.size() + value.size();
      if (bytes > limits_.metadata_bytes) {
        cursor_.fail("__metadata__ is longer than " + std::to_string(limits_.metadata_bytes) + " bytes");
      }
      header_.metadata.emplace_back(std::move(key), std::move(value));
    });
  }

  void parse_entry(std::string&& name) {
    if (header_.entries.size() >= limits_.entries) {
      cursor_.fail("more than " + std::to_string(limits_.entries) + " tensors");
    }
    for (char c : name) {
      if (static_cast<unsigned char>(c) < 0x20) cursor_.fail("a control character in a tensor's name");
    }
    TensorEntry entry;
    entry.name = std::move(name);
    bool has_shape = false;
    bool has_offsets = false;
    if (cursor_.peek() != '{') cursor_.fail("tensor " + quoted(entry.name) + " must be an object");
    cursor_.parse_members([&](std::string&& key) {
      if (key == "dtype") {
        if (entry.dtype != nullptr) cursor_.fail("tensor " + quoted(entry.name) + " has two dtypes");
        if (cursor_.peek() != '"') cursor_.fail("the dtype of " + quoted(entry.name) + " must be a string");
        std::string dtype = cursor_.parse_string(limits_.name_bytes);
        entry.dtype = find_file_dtype(dtype);
        if (entry.dtype == nullptr) {
          fail_tensor(entry, "unknown dtype " + quoted(dtype));
        }
      } else if (key == "shape") {
        if (has_shape) cursor_.fail("tensor " + quoted(entry.name) + " has two shapes");
        has_shape = true;
        cursor_.parse_integers([&](uint64_t value) {
          if (entry.shape.size() >= limits_.rank) {
            cursor_.fail("tensor " + quoted(entry.name) + " has more than " + std::to_string(limits_.rank) +
                         " dimensions");
          }
          entry.shape.push_back(static_cast<int64_t>(value));
        });
      } else if (key == "data_offsets") {
        if (has_offsets) cursor_.fail("tensor " + quoted(entry.name) + " has two data_offsets");
        has_offsets = true;
        int count = 0;
        cursor_.parse_integers([&](uint64_t value) {
          if (count == 0) entry.begin = value;
          if (count == 1) entry.end = value;
          if (++count > 2) cursor_.fail("data_offsets of " + quoted(entry.name) + " must be two numbers");
        });
        if (count != 2) cursor_.fail("data_offsets of " + quoted(entry.name) + " must be two numbers");
      } else {
        cursor_.fail("unknown key " + quoted(key) + " in tensor " + quoted(entry.name));
      }
    });
    const char* missing = entry.dtype == nullptr ? "dtype"
                          : !has_shape           ? "shape"
                          : !has_offsets         ? "data_offsets"
                                                 : nullptr;
    if (missing != nullptr) fail_tensor(entry, std::string("has no ") + missing);
    check_entry(entry);
    header_.entries.push_back(std::move(entry));
  }

  void check_entry(const TensorEntry& entry) const {
    if (entry.begin > entry.end) {
      fail_tensor(entry, "begins at byte " + std::to_string(entry.begin) + " and ends at " + std::to_string(entry.end));
    }
    if (entry.end > data_bytes_) {
      fail_tensor(
          entry, "ends at byte " + std::to_string(entry.end) + " of " + std::to_string(data_bytes_) + " bytes of data");
    }
    // Over the non-zero dimensions, so that [2^52, 2^52, 0] is refused whatever its order.
    uint64_t elements = 1;
    bool empty = false;
    for (int64_t dim : entry.shape) {
      if (dim == 0) {
        empty = true;
      } else if (__builtin_mul_overflow(elements, static_cast<uint64_t>(dim), &elements) ||
                 elements > kLargestInteger) {
        fail_tensor(entry, "has a shape too large to count");
      }
    }
    if (empty) elements = 0;
    uint64_t bytes = 0;
    if (__builtin_mul_overflow(elements, uint64_t{entry.dtype->bytes}, &bytes) || bytes != entry.end - entry.begin) {
      fail_tensor(entry, "its shape and dtype need " + std::to_string(bytes) + " bytes, its data_offsets hold " +
                             std::to_string(entry.end - entry.begin));
    }
    // Relative to the data: headers of the first years are not padded, and reads are copies anyway.
    if (entry.begin % entry.dtype->bytes != 0) {
      fail_tensor(entry,
                  "is misaligned: " + std::string(entry.dtype->name) + " at byte " + std::to_string(entry.begin));
    }
  }

  // Sorting indices instead of hashing as we go: 4 bytes a name, and no collisions to provoke.
  void check_unique_names() const {
    auto check = [](const auto& items, auto name_of, const char* what) {
      std::vector<uint32_t> order(items.size());
      std::iota(order.begin(), order.end(), 0u);
      std::sort(order.begin(), order.end(),
                [&](uint32_t a, uint32_t b) { return name_of(items[a]) < name_of(items[b]); });
      for (size_t i = 1; i < order.size(); ++i) {
        const std::string& name = name_of(items[order[i]]);
        if (name == name_of(items[order[i - 1]])) {
          throw FormatError(std::string(what) + " " + quoted(name) + " is given twice");
        }
      }
    };
    check(
        header_.entries, [](const TensorEntry& e) -> const std::string& { return e.name; }, "tensor");
    check(
        header_.metadata, [](const std::pair<std::string, std::string>& m) -> const std::string& { return m.first; },
        "metadata");
  }

  // The data is covered exactly: hidden bytes could carry another file (a polyglot), an overlap
  // could alias one tensor's data to another's.
  void check_layout() const {
    std::vector<uint32_t> order(header_.entries.size());
    std::iota(order.begin(), order.end(), 0u);
    std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
      const TensorEntry& x = header_.entries[a];
      const TensorEntry& y = header_.entries[b];
      return x.begin != y.begin ? x.begin < y.begin : x.end < y.end;
    });
    uint64_t covered = 0;
    for (uint32_t i : order) {
      const TensorEntry& entry = header_.entries[i];
      if (entry.begin < covered) {
        fail_tensor(entry, "overlaps another tensor: it begins at byte " + std::to_string(entry.begin) +
                               ", the one before ends at " + std::to_string(covered));
      }
      if (entry.begin > covered) {
        fail_tensor(entry, "has " + std::to_string(entry.begin - covered) + " unused bytes before it (a hole at byte " +
                               std::to_string(covered) + ")");
      }
      covered = entry.end;
    }
    if (covered != data_bytes_) {
      throw FormatError("the tensors end at byte " + std::to_string(covered) + " of " + std::to_string(data_bytes_) +
                        " bytes of data: trailing bytes");
    }
  }

  JsonCursor cursor_;
  uint64_t data_bytes_;
  const SafetensorsLimits& limits_;
  bool has_metadata_ = false;
  SafetensorsHeader header_;
};

}  // namespace

SafetensorsHeader parse_safetensors_json(std::string_view json, uint64_t data_bytes, const SafetensorsLimits& limits) {
  return Parser(JsonCursor(json, limits.name_bytes), data_bytes, limits).parse();
}

SafetensorsHeader parse_safetensors_json(std::string_view json, const ReadHeader& read, uint64_t data_bytes,
                                         const SafetensorsLimits& limits) {
  return Parser(JsonCursor(json, read, limits.name_bytes), data_bytes, limits).parse();
}

}  // namespace llamaforge::io
