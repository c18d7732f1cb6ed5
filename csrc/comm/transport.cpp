#include "comm/transport.h"

#include <dlfcn.h>

#include <cstdlib>
#include <filesystem>
#include <mutex>

#include "runtime/plugin.h"

namespace llamaforge::comm {

namespace {

constexpr const char* kFile = "libllamaforge_gloo.so";

TransportEntry* load() {
  std::vector<std::string> paths;
  if (const char* file = std::getenv("LLAMAFORGE_GLOO_PLUGIN")) {
    paths = {file};
  } else {
    Dl_info info;
    if (dladdr(reinterpret_cast<const void*>(&build_id), &info) && info.dli_fname) {
      paths.push_back((std::filesystem::path(info.dli_fname).parent_path() / kFile).string());
    }
  }
  std::string tried;
  for (const std::string& path : paths) {
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) {
      tried +=
          format("\n  {}: {}", path, std::filesystem::exists(path) ? dlerror() : "no such file");
      continue;
    }
    if (auto* entry = reinterpret_cast<TransportEntry*>(dlsym(library, kTransportEntry)))
      return entry;
    tried += format("\n  {}: not a plugin of LlamaForge", path);
  }
  throw Error(
      "ERR_DEVICE",
      format("more than one rank on CPUs needs Gloo, and its plugin could not be loaded. "
             "Tried:{}\nInstall "
             "Gloo with: apt-get install libgloo0   (in a clone of the repository: apt-get install "
             "libgloo-dev, then npm run setup)",
             tried));
}

}  // namespace

std::unique_ptr<Transport> open_transport(const TransportOptions& options) {
  static std::mutex mutex;
  static TransportEntry* entry = nullptr;
  {
    std::lock_guard lock(mutex);
    if (!entry) entry = load();
  }
  const std::unique_ptr<std::unique_ptr<Transport>> transport(entry(build_id(), options));
  if (!transport)
    throw Error("ERR_DEVICE",
                format("{} was built from other sources than the addon: run npm run setup", kFile));
  return std::move(*transport);
}

}  // namespace llamaforge::comm
