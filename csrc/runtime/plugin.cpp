#include "runtime/plugin.h"

#include <dlfcn.h>

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

// CUDA majors for which this version has a plugin, newest first. A driver runs its own major and
// older ones.
constexpr int kMajors[] = {13};

constexpr const char* kDriver = "libcuda.so.1";

struct DriverVersion {
  int major, minor;
};

// Asks the driver for its version. The driver stays loaded, because the plugin needs it anyway.
DriverVersion driver_version() {
  void* driver = dlopen(kDriver, RTLD_NOW | RTLD_LOCAL);
  if (!driver) {
    throw Error("ERR_DEVICE", format("CUDA was asked for, but NVIDIA's driver is not here ({}).\nInstall the driver for your "
                                     "GPU (https://www.nvidia.com/drivers), or use the CPU: device \"cpu\"",
                                     dlerror()));
  }
  auto version_of = reinterpret_cast<int (*)(int*)>(dlsym(driver, "cuDriverGetVersion"));
  int version = 0;
  if (!version_of || version_of(&version) != 0) {
    throw Error("ERR_DEVICE", format("CUDA was asked for, but {} does not tell its version", kDriver));
  }
  return {version / 1000, version % 1000 / 10};
}

std::filesystem::path own_folder() {
  Dl_info info;
  if (!dladdr(reinterpret_cast<const void*>(&build_id), &info) || !info.dli_fname) return {};
  return std::filesystem::path(info.dli_fname).parent_path();
}

std::vector<std::string> candidates(int driver_major, const std::vector<std::string>& folders) {
  if (const char* file = std::getenv("LLAMAFORGE_CUDA_PLUGIN")) return {file};
  std::vector<std::string> paths;
  for (int major : kMajors) {
    if (major > driver_major) continue;
    const std::string name = format("libllamaforge_cuda{}.so", major);
    if (const auto folder = own_folder(); !folder.empty()) paths.push_back((folder / name).string());
    for (const std::string& folder : folders) paths.push_back((std::filesystem::path(folder) / name).string());
  }
  return paths;
}

LoadedPlugin load(const std::vector<std::string>& folders) {
  const DriverVersion driver = driver_version();
  const int oldest = kMajors[std::size(kMajors) - 1];
  if (driver.major < oldest) {
    throw Error("ERR_DEVICE", format("CUDA was asked for, but the driver supports CUDA {}.{} and the oldest plugin needs {}: "
                                     "update the driver (https://www.nvidia.com/drivers)",
                                     driver.major, driver.minor, oldest));
  }
  std::string tried;
  for (const std::string& path : candidates(driver.major, folders)) {
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) {
      tried += format("\n  {}: {}", path, std::filesystem::exists(path) ? dlerror() : "no such file");
      continue;
    }
    auto* entry = reinterpret_cast<PluginEntry*>(dlsym(library, kPluginEntry));
    if (!entry) {
      tried += format("\n  {}: not a plugin of LlamaForge", path);
      continue;
    }
    if (const Plugin* plugin = entry(build_id())) return {plugin, path, driver.major, driver.minor};
    tried += format("\n  {}: built from other sources than the addon (build id {})", path, build_id());
  }
  throw Error("ERR_DEVICE", format("CUDA was asked for, but no plugin could be loaded. The driver supports CUDA {}.{}. "
                                   "Tried:{}\nInstall it with: npm install @llamaforge/linux-x64-cuda{}   (in a clone of the "
                                   "repository: npm run build:cuda)",
                                   driver.major, driver.minor, tried, kMajors[0]));
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
