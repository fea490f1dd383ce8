// Stands in for CUDA's header of this name, see cuda_runtime.h.
#pragma once

#include "cuda_runtime.h"

using __nv_bfloat16 = pllm::Bfloat;
struct __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
inline float __bfloat162float(__nv_bfloat16 value) { return pllm::to_float(value); }
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  __nv_bfloat16 out;
  pllm::from_float(value, &out);
  return out;
}
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)}; }
