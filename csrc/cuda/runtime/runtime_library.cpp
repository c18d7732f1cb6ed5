#include "cuda/runtime/runtime_library.h"

#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <glob.h>

#include <cstdlib>
#include <sstream>
#include <vector>

#include "runtime/error.h"

namespace llamaforge::cuda {

namespace {

const std::string kMajor = std::to_string(CUDART_VERSION / 1000);

void add_matches(std::vector<std::string>& paths, const std::string& pattern) {
  glob_t found;
  if (glob(pattern.c_str(), GLOB_NOSORT, nullptr, &found) == 0) {
    for (size_t i = 0; i < found.gl_pathc; ++i) paths.emplace_back(found.gl_pathv[i]);
  }
  globfree(&found);
}

// The folders of a Python installation where NVIDIA's wheels put their libraries: nvidia/cu13/lib,
// nvidia/cublas/lib.
void add_wheels(std::vector<std::string>& paths, const std::string& prefix,
                const std::string& file) {
  for (const char* packages : {"site-packages", "dist-packages"}) {
    add_matches(paths, prefix + "/lib/python3*/" + packages + "/nvidia/*/lib/" + file);
  }
}

// Lists the places in the order of the search: the loader's own path, the toolkit, Python's
// packages.
std::vector<std::string> places(const LibraryName& name) {
  if (const char* file = std::getenv(name.variable)) return {file};
  const std::string& file = name.file;
  std::vector<std::string> paths = {file};
  for (const char* variable : {"CUDA_HOME", "CUDA_PATH"}) {
    if (const char* home = std::getenv(variable)) {
      paths.push_back(std::string(home) + "/lib64/" + file);
      add_matches(paths, std::string(home) + "/targets/*/lib/" + file);
    }
  }
  paths.push_back("/usr/local/cuda/lib64/" + file);
  add_matches(paths, "/usr/local/cuda-" + kMajor + "*/lib64/" + file);
  for (const char* variable : {"VIRTUAL_ENV", "CONDA_PREFIX"}) {
    if (const char* prefix = std::getenv(variable)) {
      add_wheels(paths, prefix, file);
      add_matches(paths, std::string(prefix) + "/lib/" + file);
    }
  }
  if (const char* path = std::getenv("PATH")) {
    std::istringstream folders(path);
    for (std::string folder; std::getline(folders, folder, ':');) {
      if (folder.size() > 4 && folder.ends_with("/bin"))
        add_wheels(paths, folder.substr(0, folder.size() - 4), file);
    }
  }
  for (const char* prefix : {"/usr/local", "/usr"}) add_wheels(paths, prefix, file);
  add_matches(paths, "/usr/lib/python3/dist-packages/nvidia/*/lib/" + file);
  if (const char* home = std::getenv("HOME"))
    add_wheels(paths, std::string(home) + "/.local", file);
  return paths;
}

}  // namespace

RuntimeLibrary open_library(const LibraryName& name) {
  std::string tried;
  for (const std::string& path : places(name)) {
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) {
      tried += format("\n  {}: {}", path, dlerror());
      continue;
    }
    Dl_info info;
    void* symbol = dlsym(library, name.symbol);
    return {library, symbol && dladdr(symbol, &info) ? info.dli_fname : path};
  }
  throw Error("ERR_DEVICE",
              format("{} for CUDA {} was not found.\nTried:{}\n"
                     "Install it with: pip install {}   or set {} to the path of {}",
                     name.title, kMajor, tried, name.package, name.variable, name.file));
}

void* find_symbol(const RuntimeLibrary& library, const std::string& symbol) {
  void* function = dlsym(library.handle, symbol.c_str());
  if (!function) throw Error("ERR_DEVICE", format("{} has no {}", library.path, symbol));
  return function;
}

}  // namespace llamaforge::cuda
