#include "cuda/cublaslt.h"

#include <dlfcn.h>
#include <glob.h>

#include <cstdlib>
#include <sstream>
#include <vector>

#include "runtime/error.h"

namespace llamaforge::cuda {

namespace {

const std::string kMajor = std::to_string(CUDART_VERSION / 1000);
const std::string kFile = "libcublasLt.so." + kMajor;

void add_matches(std::vector<std::string>& paths, const std::string& pattern) {
  glob_t found;
  if (glob(pattern.c_str(), GLOB_NOSORT, nullptr, &found) == 0) {
    for (size_t i = 0; i < found.gl_pathc; ++i) paths.emplace_back(found.gl_pathv[i]);
  }
  globfree(&found);
}

// The folders of a Python installation where NVIDIA's wheels put their libraries: nvidia/cu13/lib, nvidia/cublas/lib.
void add_wheels(std::vector<std::string>& paths, const std::string& prefix) {
  for (const char* packages : {"site-packages", "dist-packages"}) {
    add_matches(paths, prefix + "/lib/python3*/" + packages + "/nvidia/*/lib/" + kFile);
  }
}

// In the order of the search: the loader's own path, the toolkit, Python's packages.
std::vector<std::string> places() {
  if (const char* file = std::getenv("LLAMAFORGE_CUBLASLT")) return {file};
  std::vector<std::string> paths = {kFile};
  for (const char* variable : {"CUDA_HOME", "CUDA_PATH"}) {
    if (const char* home = std::getenv(variable)) {
      paths.push_back(std::string(home) + "/lib64/" + kFile);
      add_matches(paths, std::string(home) + "/targets/*/lib/" + kFile);
    }
  }
  paths.push_back("/usr/local/cuda/lib64/" + kFile);
  add_matches(paths, "/usr/local/cuda-" + kMajor + "*/lib64/" + kFile);
  for (const char* variable : {"VIRTUAL_ENV", "CONDA_PREFIX"}) {
    if (const char* prefix = std::getenv(variable)) {
      add_wheels(paths, prefix);
      add_matches(paths, std::string(prefix) + "/lib/" + kFile);
    }
  }
  if (const char* path = std::getenv("PATH")) {
    std::istringstream folders(path);
    for (std::string folder; std::getline(folders, folder, ':');) {
      if (folder.size() > 4 && folder.ends_with("/bin")) add_wheels(paths, folder.substr(0, folder.size() - 4));
    }
  }
  for (const char* prefix : {"/usr/local", "/usr"}) add_wheels(paths, prefix);
  add_matches(paths, "/usr/lib/python3/dist-packages/nvidia/*/lib/" + kFile);
  if (const char* home = std::getenv("HOME")) add_wheels(paths, std::string(home) + "/.local");
  return paths;
}

template <class Function> void bind(void* library, const std::string& path, const char* name, Function& function) {
  const std::string symbol = std::string("cublasLt") + name;
  function = reinterpret_cast<Function>(dlsym(library, symbol.c_str()));
  if (!function) throw Error("ERR_DEVICE", format("{} has no {}", path, symbol));
}

CublasLt bind_all(void* library, const std::string& path) {
  CublasLt lt = {};
  lt.path = path;
#define LF_BIND(name) bind(library, path, #name, lt.name)
  LF_BIND(Create);
  LF_BIND(Destroy);
  LF_BIND(GetVersion);
  LF_BIND(MatmulDescCreate);
  LF_BIND(MatmulDescDestroy);
  LF_BIND(MatmulDescSetAttribute);
  LF_BIND(MatrixLayoutCreate);
  LF_BIND(MatrixLayoutDestroy);
  LF_BIND(MatrixLayoutSetAttribute);
  LF_BIND(MatmulPreferenceCreate);
  LF_BIND(MatmulPreferenceDestroy);
  LF_BIND(MatmulPreferenceSetAttribute);
  LF_BIND(MatmulAlgoGetHeuristic);
  LF_BIND(MatmulAlgoCheck);
  LF_BIND(MatmulAlgoConfigGetAttribute);
  LF_BIND(Matmul);
#undef LF_BIND
  return lt;
}

CublasLt load() {
  std::string tried;
  for (const std::string& path : places()) {
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) {
      tried += format("\n  {}: {}", path, dlerror());
      continue;
    }
    // The file that the loader's path led to.
    Dl_info info;
    void* symbol = dlsym(library, "cublasLtCreate");
    return bind_all(library, symbol && dladdr(symbol, &info) ? info.dli_fname : path);
  }
  throw Error("ERR_DEVICE", format("cuBLASLt for CUDA {} was not found. Tried:{}\nInstall it with: pip install nvidia-cublas   "
                                   "or set LLAMAFORGE_CUBLASLT to the path of {}",
                                   kMajor, tried, kFile));
}

}  // namespace

std::string CublasLt::description() const {
  const size_t version = GetVersion();  // 130101: 13.1.1; before 13: 120805
  return format("cuBLASLt {}.{}.{} from {}", version / 10000, version / 100 % 100, version % 100, path);
}

const CublasLt& cublaslt() {
  static const CublasLt library = load();
  return library;
}

}  // namespace llamaforge::cuda
