// Stands in for CUDA's header of this name, see cuda_runtime.h.
#pragma once

#include "cuda_runtime.h"

using __half = pllm::Half;
struct __half2 {
  __half x, y;
};
inline float __half2float(__half value) { return pllm::to_float(value); }
inline __half __float2half_rn(float value) {
  __half out;
  pllm::from_float(value, &out);
  return out;
}
inline float2 __half22float2(__half2 both) { return {__half2float(both.x), __half2float(both.y)}; }
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
