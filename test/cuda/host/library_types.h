// Stands in for CUDA's header: see cuda_runtime_api.h.
#pragma once

enum cudaDataType { CUDA_R_32F };
