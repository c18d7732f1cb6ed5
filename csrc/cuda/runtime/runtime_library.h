// NVIDIA's libraries are opened at run time, so that building needs none of them, and running does
// not need them in a particular place.
#pragma once

#include <string>

namespace llamaforge::cuda {

struct RuntimeLibrary {
  void* handle;
  std::string path;  // of the file that was opened
};

struct LibraryName {
  const char* title;  // "cuBLASLt"
  std::string file;   // "libcublasLt.so.13"
  const char*
      symbol;  // any function of the library; it leads to the file that the loader's path found
  const char*
      variable;         // environment variable that names the file; if set, only that file is tried
  std::string package;  // pip package that contains the library
};

// Searches the loader's own path, CUDA_HOME and CUDA_PATH, /usr/local/cuda*, and the
// site-packages/nvidia/*/lib of Python installations. Throws ERR_DEVICE with every place tried and
// the command that installs it.
RuntimeLibrary open_library(const LibraryName& name);

// Throws ERR_DEVICE if the library has no function of that name.
void* find_symbol(const RuntimeLibrary& library, const std::string& symbol);

template <class Function>
void bind(const RuntimeLibrary& library, const std::string& symbol, Function& function) {
  function = reinterpret_cast<Function>(find_symbol(library, symbol));
}

}  // namespace llamaforge::cuda
