#include "cuda/gemm/cublaslt.h"

#include "cuda/runtime/runtime_library.h"
#include "runtime/error.h"

namespace llamaforge::cuda {

namespace {

constexpr int kMajor = CUDART_VERSION / 1000;

// Since CUDA 13 the wheels have no major in their names.
constexpr const char* kWheel = kMajor >= 13 ? "nvidia-cublas" : "nvidia-cublas-cu12";

CublasLt load() {
  const RuntimeLibrary library =
      open_library({"cuBLASLt", "libcublasLt.so." + std::to_string(kMajor), "cublasLtGetVersion",
                    "LLAMAFORGE_CUBLASLT", kWheel});
  CublasLt lt = {};
  lt.path = library.path;
#define LF_BIND(name) bind(library, "cublasLt" #name, lt.name)
  LF_BIND(GetVersion);
  // The environment variable may name any file, and the structures differ between CUDA majors.
  if (const size_t version = lt.GetVersion(); version / 10000 != kMajor) {
    throw Error(
        "ERR_DEVICE",
        format(
            "{}; this plugin is built for CUDA {} and needs cuBLASLt {}: pip install \"{}=={}.*\"",
            lt.description(), kMajor, kMajor, kWheel, kMajor));
  }
  LF_BIND(Create);
  LF_BIND(Destroy);
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

}  // namespace

std::string CublasLt::description() const {
  const size_t version = GetVersion();  // 130101 is 13.1.1; before 13: 120805
  return format("cuBLASLt {}.{}.{} from {}", version / 10000, version / 100 % 100, version % 100,
                path);
}

const CublasLt& cublaslt() {
  static const CublasLt library = load();
  return library;
}

}  // namespace llamaforge::cuda
