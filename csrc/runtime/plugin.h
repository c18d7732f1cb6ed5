// The CUDA kernels live in a library of their own, libllamaforge_cuda<MAJOR>.so, which is loaded the first time a GPU
// is asked for: the same package runs on machines without one. Both sides are built from one source tree; the build id,
// a hash of everything they share, is compared before anything else is used.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "runtime/collectives.h"
#include "runtime/stream.h"

namespace llamaforge {

struct OpTable;

struct GpuDescription {
  std::string name;
  int major, minor;  // compute capability
  uint64_t memory_bytes;
};

// What the plugin hands over.
struct Plugin {
  const char* build_id;
  const OpTable* ops;
  int (*device_count)();
  // Leaves the GPU alone: every rank asks about all GPUs of its host.
  GpuDescription (*describe)(int index);
  // Makes the process a user of that GPU, which takes some hundred MB of its memory. Throws ERR_DEVICE,
  // ERR_DEVICE_LOST.
  uint64_t (*free_bytes)(int index);
  // A stream of its own on that GPU. Throws ERR_DEVICE.
  std::shared_ptr<Stream> (*open)(int index);
  // Where the libraries were found that it opens at run time: "cuBLASLt 13.1 from /path".
  std::vector<std::string> (*libraries)();
  // Collectives between GPUs. First, on the JS thread, their library is loaded, which sets a variable of the
  // environment: elsewhere JS may be reading that. Throws ERR_DEVICE if it is missing.
  void (*load_collectives)();
  // The id is for all ranks of one group; the stream must be one that `open` made. Opening blocks until the ranks have
  // met and throws ERR_PEER if they do not.
  std::string (*collectives_id)();
  std::shared_ptr<Collectives> (*open_collectives)(const std::shared_ptr<Stream>& stream,
                                                   const CollectivesOptions& options);
};

// The plugin's one exported function; null if `build_id` is not its own.
extern "C" using PluginEntry = const Plugin * (const char* build_id);
constexpr const char* kPluginEntry = "llamaforge_cuda_plugin";

// Hash of the sources that the addon and its plugins share.
const char* build_id();

struct LoadedPlugin {
  const Plugin* plugin;
  std::string path;
  int driver_major, driver_minor;  // the CUDA version that the driver supports
};

// Loads the plugin for this machine's driver, once for the process; `folders` are searched after the addon's own
// folder. Throws ERR_DEVICE with every path tried and the way out. LLAMAFORGE_CUDA_PLUGIN names a file and nothing else
// is tried.
const LoadedPlugin& load_plugin(const std::vector<std::string>& folders);

}  // namespace llamaforge
