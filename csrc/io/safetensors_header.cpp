// The grammar of a safetensors header: two levels of JSON, and the rules that hold between its
// numbers.
#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>

#include "io/header_text.h"
#include "io/safetensors.h"

namespace llamaforge::io {
namespace {

constexpr std::string_view kMetadataKey = "__metadata__";
// Largest integer that JavaScript can count to.
constexpr uint64_t kLargestInteger = (uint64_t{1} << 53) - 1;

// The parser's words for an error in the text, and ours. Errors in strings come first, because a
// key is a string as well.
struct Wording {
  std::string_view parser, ours;
};
constexpr Wording kWordings[] = {
    {"missing closing quote", "a string does not end"},
    {"ill-formed UTF-8", "invalid UTF-8"},
    {"control character", "a control character in a string"},
    {"forbidden character after backslash", "an unknown escape in a string"},
    {"must be followed by 4 hex digits", "an incomplete \\u escape"},
    {"surrogate", "a lone surrogate in a string"},
    {"parsing object key", "expected a key in double quotes"},
    {"parsing object separator", "expected ':' after a key"},
    {"parsing object", "expected '}' or ',' after a value"},
    {"parsing array", "expected ']' or ',' after an integer"},
};

// Takes the tokens of the JSON as they are read. Each place knows which tokens may come there, so
// nothing nests any deeper.
class Parser final : public nlohmann::json_sax<nlohmann::json> {
 public:
  Parser(std::string_view json, const ReadHeader& read, uint64_t data_bytes,
         const SafetensorsLimits& limits)
      : text_(json, read, limits.name_bytes), data_bytes_(data_bytes), limits_(limits) {}

  SafetensorsHeader parse() {
    // A byte order mark is refused here as well, because the parser would skip it.
    if (text_.at_end() || text_.current() != '{') text_.fail("a header must start with '{'");
    nlohmann::json::sax_parse(text_.begin(), text_.end(), this);
    if (text_.last() == '\0') fail_rest();  // the parser takes a zero byte for the end
    check_unique_names();
    check_layout();
    return std::move(header_);
  }

  // ---- tokens

  bool start_object(size_t) override {
    switch (place_) {
      case Place::before: place_ = Place::header; return true;
      case Place::header:
        place_ = key_ == kMetadataKey ? Place::metadata : Place::tensor;
        if (place_ == Place::tensor) start_entry();
        return true;
      default: refuse_value();
    }
  }

  bool key(string_t& key) override {
    text_.check_string(key);
    if (key == "__proto__") text_.fail("\"__proto__\" is refused as a name");
    switch (place_) {
      case Place::metadata: start_metadata(); break;
      case Place::tensor: start_field(key); break;
      default: start_member(key);
    }
    key_ = std::move(key);
    return true;
  }

  bool end_object() override {
    switch (place_) {
      case Place::tensor: end_entry(); break;
      case Place::metadata: break;
      default: place_ = Place::after; return true;
    }
    place_ = Place::header;
    return true;
  }

  bool string(string_t& value) override {
    text_.check_string(value);
    if (place_ == Place::metadata) {
      add_metadata(std::move(value));
    } else if (place_ == Place::tensor && field_ == Field::dtype) {
      entry_.dtype = find_file_dtype(value);
      if (entry_.dtype == nullptr) fail_tensor(entry_, "unknown dtype " + in_quotes(value));
    } else {
      refuse_value();
    }
    return true;
  }

  bool start_array(size_t) override {
    if (place_ != Place::tensor || field_ == Field::dtype) refuse_value();
    place_ = Place::list;
    return true;
  }

  bool number_unsigned(number_unsigned_t value) override {
    if (place_ != Place::list) refuse_value();
    // The parser reads 02 as two numbers.
    if (value == 0 && text_.last() >= '0' && text_.last() <= '9')
      text_.fail("an integer with a leading zero");
    if (value > kLargestInteger) text_.fail("an integer above 2^53 - 1");
    field_ == Field::shape ? add_dimension(value) : add_offset(value);
    return true;
  }

  bool end_array() override {
    place_ = Place::tensor;
    if (field_ == Field::offsets && offsets_ != 2) fail_offsets();
    return true;
  }

  bool number_float(number_float_t, const string_t& text) override {
    if (place_ != Place::list) refuse_value();
    const bool whole =
        text.find_first_of(".eE") == string_t::npos;  // such an integer has more than 64 bits
    text_.fail(whole ? "an integer above 2^53 - 1"
                     : "expected an integer, got a fraction or an exponent");
  }
  bool null() override { refuse_value(); }
  bool boolean(bool) override { refuse_value(); }
  bool number_integer(number_integer_t) override { refuse_value(); }
  // Only formats other than JSON have binary values.
  bool binary(binary_t&) override { refuse_value(); }

  bool parse_error(size_t, const std::string&, const nlohmann::json::exception& error) override {
    if (place_ == Place::after) fail_rest();
    // The parser's message quotes bytes of the file, which are left out here.
    const std::string_view all = error.what();
    const std::string_view what = all.substr(0, all.find("; last read"));
    const auto says = [&](std::string_view words) {
      return what.find(words) != std::string_view::npos;
    };
    for (const Wording& wording : kWordings) {
      if (says(wording.parser)) {
        text_.fail(std::string(wording.ours) +
                   (says("unexpected end of input") ? ", but the header ends" : ""));
      }
    }
    refuse_value();
  }

 private:
  enum class Place { before, header, metadata, tensor, list, after };
  enum class Field { dtype, shape, offsets };

  [[noreturn]] static void fail_tensor(const TensorEntry& entry, const std::string& what) {
    throw FormatError("tensor " + in_quotes(entry.name) + ": " + what);
  }
  [[noreturn]] void fail_rest() const {
    text_.fail("unexpected bytes after the header's closing brace");
  }
  [[noreturn]] void fail_offsets() const {
    text_.fail("data_offsets of " + in_quotes(entry_.name) + " must be two numbers");
  }

  // Refuses a value of another type than its place asks for, or a missing value.
  [[noreturn]] void refuse_value() const {
    switch (place_) {
      case Place::header:
        if (key_ == kMetadataKey) text_.fail("__metadata__ must be an object of strings");
        text_.fail("tensor " + in_quotes(key_) + " must be an object");
      case Place::metadata:
        text_.fail("the value of metadata " + in_quotes(key_) + " must be a string");
      case Place::tensor:
        if (field_ == Field::dtype)
          text_.fail("the dtype of " + in_quotes(entry_.name) + " must be a string");
        text_.fail("expected '[' at the start of a list of integers");
      case Place::list: text_.fail("expected a non-negative integer");
      case Place::before:
      case Place::after: text_.fail("expected one object");
    }
    text_.fail("unexpected value");
  }

  void start_member(const std::string& name) {
    if (name == kMetadataKey) {
      if (has_metadata_) text_.fail("__metadata__ is given twice");
      has_metadata_ = true;
      return;
    }
    if (header_.entries.size() >= limits_.entries) {
      text_.fail("more than " + std::to_string(limits_.entries) + " tensors");
    }
    for (char c : name) {
      if (static_cast<unsigned char>(c) < 0x20)
        text_.fail("a control character in a tensor's name");
    }
  }

  void start_metadata() {
    if (header_.metadata.size() >= limits_.entries) {
      text_.fail("__metadata__ has more than " + std::to_string(limits_.entries) + " keys");
    }
    text_.limit_strings(limits_.metadata_bytes);
  }

  void add_metadata(std::string&& value) {
    text_.limit_strings(limits_.name_bytes);
    metadata_bytes_ += key_.size() + value.size();
    if (metadata_bytes_ > limits_.metadata_bytes) {
      text_.fail("__metadata__ is longer than " + std::to_string(limits_.metadata_bytes) +
                 " bytes");
    }
    header_.metadata.emplace_back(key_, std::move(value));
  }

  void start_entry() {
    entry_ = {};
    entry_.name = key_;
    has_shape_ = has_offsets_ = false;
  }

  void start_field(const std::string& key) {
    if (key == "dtype") {
      if (entry_.dtype != nullptr)
        text_.fail("tensor " + in_quotes(entry_.name) + " has two dtypes");
      field_ = Field::dtype;
    } else if (key == "shape") {
      if (has_shape_) text_.fail("tensor " + in_quotes(entry_.name) + " has two shapes");
      has_shape_ = true;
      field_ = Field::shape;
    } else if (key == "data_offsets") {
      if (has_offsets_) text_.fail("tensor " + in_quotes(entry_.name) + " has two data_offsets");
      has_offsets_ = true;
      offsets_ = 0;
      field_ = Field::offsets;
    } else {
      text_.fail("unknown key " + in_quotes(key) + " in tensor " + in_quotes(entry_.name));
    }
  }

  void add_dimension(uint64_t value) {
    if (entry_.shape.size() >= limits_.rank) {
      text_.fail("tensor " + in_quotes(entry_.name) + " has more than " +
                 std::to_string(limits_.rank) + " dimensions");
    }
    entry_.shape.push_back(static_cast<int64_t>(value));
  }

  void add_offset(uint64_t value) {
    if (offsets_ == 2) fail_offsets();
    (offsets_++ == 0 ? entry_.begin : entry_.end) = value;
  }

  void end_entry() {
    const char* missing = entry_.dtype == nullptr ? "dtype"
                          : !has_shape_           ? "shape"
                          : !has_offsets_         ? "data_offsets"
                                                  : nullptr;
    if (missing != nullptr) fail_tensor(entry_, std::string("has no ") + missing);
    check_entry(entry_);
    header_.entries.push_back(std::move(entry_));
  }

  void check_entry(const TensorEntry& entry) const {
    if (entry.begin > entry.end) {
      fail_tensor(entry, "begins at byte " + std::to_string(entry.begin) + " and ends at " +
                             std::to_string(entry.end));
    }
    if (entry.end > data_bytes_) {
      fail_tensor(entry, "ends at byte " + std::to_string(entry.end) + " of " +
                             std::to_string(data_bytes_) + " bytes of data");
    }
    // The product covers the non-zero dimensions, so that [2^52, 2^52, 0] is refused whatever its
    // order.
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
    if (__builtin_mul_overflow(elements, uint64_t{entry.dtype->bytes}, &bytes) ||
        bytes != entry.end - entry.begin) {
      fail_tensor(entry, "its shape and dtype need " + std::to_string(bytes) +
                             " bytes, its data_offsets hold " +
                             std::to_string(entry.end - entry.begin));
    }
    // Alignment is relative to the data, because headers of the first years are not padded, and
    // reads are copies anyway.
    if (entry.begin % entry.dtype->bytes != 0) {
      fail_tensor(entry, "is misaligned: " + std::string(entry.dtype->name) + " at byte " +
                             std::to_string(entry.begin));
    }
  }

  // Sorts indices instead of hashing names as they come, which takes 4 bytes a name and leaves no
  // collisions to provoke.
  void check_unique_names() const {
    auto check = [](const auto& items, auto name_of, const char* what) {
      std::vector<uint32_t> order(items.size());
      std::iota(order.begin(), order.end(), 0u);
      std::sort(order.begin(), order.end(),
                [&](uint32_t a, uint32_t b) { return name_of(items[a]) < name_of(items[b]); });
      for (size_t i = 1; i < order.size(); ++i) {
        const std::string& name = name_of(items[order[i]]);
        if (name == name_of(items[order[i - 1]])) {
          throw FormatError(std::string(what) + " " + in_quotes(name) + " is given twice");
        }
      }
    };
    check(
        header_.entries, [](const TensorEntry& e) -> const std::string& { return e.name; },
        "tensor");
    check(
        header_.metadata,
        [](const std::pair<std::string, std::string>& m) -> const std::string& { return m.first; },
        "metadata");
  }

  // Checks that the tensors cover the data exactly: hidden bytes could carry another file (a
  // polyglot), and an overlap could alias one tensor's data to another's.
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
        fail_tensor(entry, "overlaps another tensor: it begins at byte " +
                               std::to_string(entry.begin) + ", the one before ends at " +
                               std::to_string(covered));
      }
      if (entry.begin > covered) {
        fail_tensor(entry, "has " + std::to_string(entry.begin - covered) +
                               " unused bytes before it (a hole at byte " +
                               std::to_string(covered) + ")");
      }
      covered = entry.end;
    }
    if (covered != data_bytes_) {
      throw FormatError("the tensors end at byte " + std::to_string(covered) + " of " +
                        std::to_string(data_bytes_) + " bytes of data: trailing bytes");
    }
  }

  HeaderText text_;
  const uint64_t data_bytes_;
  const SafetensorsLimits& limits_;
  Place place_ = Place::before;
  std::string key_;  // key whose value comes next
  TensorEntry entry_;
  Field field_ = Field::dtype;
  int offsets_ = 0;
  bool has_metadata_ = false, has_shape_ = false, has_offsets_ = false;
  size_t metadata_bytes_ = 0;
  SafetensorsHeader header_;
};

}  // namespace

SafetensorsHeader parse_safetensors_json(std::string_view json, uint64_t data_bytes,
                                         const SafetensorsLimits& limits) {
  return Parser(json, nullptr, data_bytes, limits).parse();
}

SafetensorsHeader parse_safetensors_json(std::string_view json, const ReadHeader& read,
                                         uint64_t data_bytes, const SafetensorsLimits& limits) {
  return Parser(json, read, data_bytes, limits).parse();
}

}  // namespace llamaforge::io
