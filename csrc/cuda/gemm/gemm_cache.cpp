#include "cuda/gemm/gemm_cache.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>

namespace llamaforge::cuda {

namespace {

// Returns an environment variable's value, empty if it is unset.
std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

std::string cache_path() {
  if (const std::string path = variable("LLAMAFORGE_GEMM_CACHE"); !path.empty())
    return path == "none" ? "" : path;
  if (const std::string cache = variable("XDG_CACHE_HOME"); !cache.empty())
    return cache + "/llamaforge/gemm.txt";
  if (const std::string home = variable("HOME"); !home.empty())
    return home + "/.cache/llamaforge/gemm.txt";
  return "";
}

std::string to_text(const lt::Algorithm& algorithm) {
  std::string text;
  for (uint64_t word : algorithm.data) {
    char hex[17];
    std::snprintf(hex, sizeof hex, "%016llx", static_cast<unsigned long long>(word));
    text += hex;
  }
  return text;
}

std::optional<lt::Algorithm> from_text(const std::string& text) {
  lt::Algorithm algorithm;
  if (text.size() != std::size(algorithm.data) * 16 ||
      text.find_first_not_of("0123456789abcdef") != std::string::npos) {
    return std::nullopt;
  }
  for (size_t i = 0; i < std::size(algorithm.data); ++i) {
    algorithm.data[i] = std::strtoull(text.substr(i * 16, 16).c_str(), nullptr, 16);
  }
  return algorithm;
}

}  // namespace

GemmCache::GemmCache(std::string prefix) : prefix_(std::move(prefix)), path_(cache_path()) {
  read();
}

// Reads the file without replacing choices that are already known.
void GemmCache::read() {
  if (path_.empty()) return;
  std::ifstream file(path_);
  for (std::string line; std::getline(file, line);) {
    const size_t tab = line.find('\t');
    if (tab == std::string::npos || line.compare(0, prefix_.size(), prefix_) != 0) continue;
    if (const auto algorithm = from_text(line.substr(tab + 1))) {
      choices_.emplace(line.substr(prefix_.size(), tab - prefix_.size()), *algorithm);
    }
  }
}

std::optional<lt::Algorithm> GemmCache::find(const std::string& product) const {
  const auto found = choices_.find(product);
  return found == choices_.end() ? std::nullopt : std::optional(found->second);
}

lt::Algorithm GemmCache::add(const std::string& product, const lt::Algorithm& algorithm) {
  if (const auto unusable = choices_.find(product); unusable != choices_.end())
    return unusable->second = algorithm;
  write(product, algorithm);
  read();
  return choices_.emplace(product, algorithm).first->second;
}

void GemmCache::write(const std::string& product, const lt::Algorithm& algorithm) const {
  if (path_.empty()) return;
  std::error_code ignored;
  const auto folder = std::filesystem::path(path_).parent_path();
  if (!folder.empty()) std::filesystem::create_directories(folder, ignored);
  const int file = open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (file < 0) return;
  // A single write() keeps the lines of several processes from mixing.
  const std::string line = prefix_ + product + "\t" + to_text(algorithm) + "\n";
  [[maybe_unused]] const ssize_t written = ::write(file, line.data(), line.size());
  ::close(file);
}

}  // namespace llamaforge::cuda
