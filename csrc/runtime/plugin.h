// The CUDA kernels are in a library of their own, libllamaforge_cuda<MAJOR>.so. It is loaded when a
// GPU is first requested, so the same package also runs on machines without a GPU. The addon and
// the plugin are built from one source tree. The build id, a hash of everything that they share, is
// compared before anything else is used.
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

// The plugin's interface.
struct Plugin {
  const char* build_id;
  const OpTable* ops;
  int (*device_count)();
  // Describes a GPU without using it, because every rank asks about all GPUs of its host.
  GpuDescription (*describe)(int index);
  // Returns the free bytes of a GPU. This makes the process a user of that GPU, which takes some
  // hundred MB of its memory. Throws ERR_DEVICE, ERR_DEVICE_LOST.
  uint64_t (*free_bytes)(int index);
  // Opens a new stream on a GPU. Throws ERR_DEVICE.
  std::shared_ptr<Stream> (*open)(int index);
  // Lists the libraries opened at run time, with their paths: "cuBLASLt 13.1 from /path".
  std::vector<std::string> (*libraries)();
  // Loads the library that every stream needs, cuBLASLt. Throws ERR_DEVICE if it is missing.
  void (*load_products)();
  // Loads the library for collectives between GPUs. It must be called first, on the JS thread:
  // loading sets an environment variable, which JS may be reading while another thread runs. Throws
  // ERR_DEVICE if the library is missing.
  void (*load_collectives)();
  // The id is for all ranks of one group; the stream must come from `open`. Opening blocks until
  // the ranks have met and throws ERR_PEER if they do not.
  std::string (*collectives_id)();
  std::shared_ptr<Collectives> (*open_collectives)(const std::shared_ptr<Stream>& stream,
                                                   const CollectivesOptions& options);
};

// The plugin's only exported function. It returns null if `build_id` differs from its own.
extern "C" using PluginEntry = const Plugin * (const char* build_id);
constexpr const char* kPluginEntry = "llamaforge_cuda_plugin";

// Hash of the sources that the addon and its plugins share.
const char* build_id();

// CUDA majors that have a plugin, newest first: the one list of them, which TypeScript reads
// through buildInfo(). A driver runs plugins of its own major and of older ones.
constexpr int kCudaMajors[] = {13, 12};

struct LoadedPlugin {
  const Plugin* plugin;
  std::string path;
  int driver_major, driver_minor;  // the CUDA version that the driver supports
  // Plugins that were preferred to this one and not taken, each with the reason.
  std::vector<std::string> passed_over;
};

// Loads the newest plugin whose driver and cuBLASLt this machine has, once per process; `folders`
// are searched after the addon's own folder. Throws ERR_DEVICE with every path tried and with a
// remedy. If LLAMAFORGE_CUDA_PLUGIN names a file, only that file is tried.
const LoadedPlugin& load_plugin(const std::vector<std::string>& folders);

}  // namespace llamaforge
