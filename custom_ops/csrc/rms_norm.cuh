// RMSNorm's CUDA kernels, header only; rms_norm_cuda.cu launches them. sm_70 to sm_120, free of atomics, the same bits each time.
#ifndef PLLM_RMS_NORM_CUH_
#define PLLM_RMS_NORM_CUH_

#include "rms_norm_backward.cuh"
#include "rms_norm_forward.cuh"

#endif  // PLLM_RMS_NORM_CUH_
