#include "runtime/plugin.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <mutex>
#include <optional>

#include "runtime/error.h"

#ifndef LLAMAFORGE_BUILD_ID
#error "LLAMAFORGE_BUILD_ID is set by the build, from csrc/build_id.cmake"
#endif

namespace llamaforge {

namespace {

constexpr const char* kDriver = "libcuda.so.1";

struct DriverVersion {
  int major, minor;
};

// Asks the driver for its version. The driver stays loaded, because the plugin needs it anyway.
DriverVersion driver_version() {
  void* driver = dlopen(kDriver, RTLD_NOW | RTLD_LOCAL);
  if (!driver) {
    throw Error("ERR_DEVICE",
                format("CUDA was asked for, but NVIDIA's driver is not here ({}).\nInstall the "
                       "driver for your "
                       "GPU (https://www.nvidia.com/drivers), or use the CPU: device \"cpu\"",
                       dlerror()));
  }
  auto version_of = reinterpret_cast<int (*)(int*)>(dlsym(driver, "cuDriverGetVersion"));
  int version = 0;
  if (!version_of || version_of(&version) != 0) {
    throw Error("ERR_DEVICE",
                format("CUDA was asked for, but {} does not tell its version", kDriver));
  }
  return {version / 1000, version % 1000 / 10};
}

std::filesystem::path own_folder() {
  Dl_info info;
  if (!dladdr(reinterpret_cast<const void*>(&build_id), &info) || !info.dli_fname) return {};
  return std::filesystem::path(info.dli_fname).parent_path();
}

// The places of a major's plugin, in the order of the search.
std::vector<std::string> places_of(int major, const std::vector<std::string>& folders) {
  std::vector<std::string> paths;
  const std::string name = format("libllamaforge_cuda{}.so", major);
  if (const auto folder = own_folder(); !folder.empty()) paths.push_back((folder / name).string());
  for (const std::string& folder : folders)
    paths.push_back((std::filesystem::path(folder) / name).string());
  return paths;
}

bool exists(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::exists(path, ignored);
}

// Opens a plugin. Returns null and adds the reason to `reasons` if that fails.
const Plugin* open_plugin(const std::string& path, std::vector<std::string>& reasons) {
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    reasons.push_back(format("{}: {}", path, exists(path) ? dlerror() : "no such file"));
    return nullptr;
  }
  auto* entry = reinterpret_cast<PluginEntry*>(dlsym(library, kPluginEntry));
  if (!entry) {
    reasons.push_back(format("{}: not a plugin of LlamaForge", path));
    return nullptr;
  }
  const Plugin* plugin = entry(build_id());
  if (!plugin)
    reasons.push_back(
        format("{}: built from other sources than the addon (build id {})", path, build_id()));
  return plugin;
}

// The reason why a plugin lacks a library, or "" if it lacks none.
std::string missing_library(const Plugin& plugin) {
  try {
    plugin.load_products();
    return "";
  } catch (const Error& error) {
    const std::string text = error.what();
    return text.substr(0, text.find('\n'));
  }
}

// Where the plugin of a major comes from. npm has packages of it for x86-64 alone.
std::string source_of([[maybe_unused]] int major) {
#ifdef __aarch64__
  return "npm has none for ARM64";
#else
  return format("npm install @llamaforge/linux-x64-cuda{}", major);
#endif
}

LoadedPlugin load(const std::vector<std::string>& folders) {
  const DriverVersion driver = driver_version();
  const int oldest = kCudaMajors[std::size(kCudaMajors) - 1];
  if (driver.major < oldest) {
    throw Error("ERR_DEVICE", format("CUDA was asked for, but the driver supports CUDA {}.{} and "
                                     "the oldest plugin needs {}: "
                                     "update the driver (https://www.nvidia.com/drivers)",
                                     driver.major, driver.minor, oldest));
  }
  LoadedPlugin loaded = {nullptr, "", driver.major, driver.minor, {}};
  std::vector<std::string> tried;
  const auto attempt = [&](const std::string& path) {
    loaded.plugin = open_plugin(path, tried);
    loaded.path = path;
    return loaded.plugin != nullptr;
  };
  if (const char* file = std::getenv("LLAMAFORGE_CUDA_PLUGIN")) {
    if (attempt(file)) return loaded;
  } else {
    // A plugin whose libraries are missing is taken if there is no other: its error says what to
    // install.
    LoadedPlugin incomplete = {};
    for (int major : kCudaMajors) {
      const std::vector<std::string> places = places_of(major, folders);
      bool present = false;
      for (const std::string& path : places) {
        if (!exists(path)) {
          if (major <= driver.major) tried.push_back(format("{}: no such file", path));
          continue;
        }
        present = true;
        if (major > driver.major) {
          loaded.passed_over.push_back(
              format("{}: needs a driver for CUDA {}, and this one supports {}.{}", path, major,
                     driver.major, driver.minor));
        } else if (!attempt(path)) {
          loaded.passed_over.push_back(tried.back());
        } else if (const std::string reason = missing_library(*loaded.plugin); reason.empty()) {
          return loaded;
        } else {
          if (!incomplete.plugin) incomplete = loaded;
          loaded.passed_over.push_back(format("{}: {}", path, reason));
        }
      }
      if (!present && major <= driver.major) {
        loaded.passed_over.push_back(
            format("CUDA {}: its plugin is not installed ({})", major, source_of(major)));
      }
    }
    if (incomplete.plugin) return incomplete;
  }
  std::string lines;
  for (const std::string& line : tried) lines += "\n  " + line;
  int newest = oldest;
  for (int major : kCudaMajors) {
    if (major <= driver.major) newest = std::max(newest, major);
  }
  throw Error(
      "ERR_DEVICE",
      format("CUDA was asked for, but no plugin could be loaded. The driver supports CUDA {}.{}. "
             "Tried:{}\nInstall it: {}   (in a clone of the "
             "repository: npm run build:cuda)",
             driver.major, driver.minor, lines, source_of(newest)));
}

}  // namespace

const char* build_id() { return LLAMAFORGE_BUILD_ID; }

const LoadedPlugin& load_plugin(const std::vector<std::string>& folders) {
  // The plugin is shared by worker threads. After a failure the next call tries again, because the
  // file may have been installed meanwhile.
  static std::mutex mutex;
  static std::optional<LoadedPlugin> loaded;
  std::lock_guard lock(mutex);
  if (!loaded) loaded = load(folders);
  return *loaded;
}

}  // namespace llamaforge
