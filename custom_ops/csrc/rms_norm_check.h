// The arguments of rms_norm.h, checked: what the CPU's and CUDA's launchers refuse alike.
#ifndef PLLM_RMS_NORM_CHECK_H_
#define PLLM_RMS_NORM_CHECK_H_

#include <cstdint>

#include "rms_norm.h"

namespace pllm {

inline int64_t size_of(int32_t type) { return type == PLLM_FLOAT32 ? 4 : 2; }

inline bool is_type(int32_t type) { return type == PLLM_FLOAT32 || type == PLLM_FLOAT16 || type == PLLM_BFLOAT16; }

inline int check(const pllm_rms_norm_shape& shape) {
  if (shape.rows < 0 || shape.hidden < 1 || shape.hidden > PLLM_RMS_NORM_MAX_HIDDEN) return PLLM_BAD_SHAPE;
  if (!is_type(shape.x_type)) return PLLM_BAD_TYPE;
  if (shape.weight_type != shape.x_type && shape.weight_type != PLLM_FLOAT32) return PLLM_BAD_TYPE;
  if (shape.rounding != PLLM_ROUND_FP32 && shape.rounding != PLLM_ROUND_LLAMA) return PLLM_BAD_ROUNDING;
  if (!(shape.epsilon >= 0)) return PLLM_BAD_EPSILON;
  return PLLM_OK;
}

// A pointer that must be there, a multiple of `size`.
inline int check_pointer(const void* pointer, int64_t size) {
  if (pointer == nullptr) return PLLM_NULL_POINTER;
  return reinterpret_cast<uintptr_t>(pointer) % static_cast<uintptr_t>(size) ? PLLM_MISALIGNED : PLLM_OK;
}

// A matrix that is written: its rows must not overlap.
inline int check_output(const void* pointer, int64_t stride, const pllm_rms_norm_shape& shape) {
  if (shape.rows > 1 && stride < shape.hidden && stride > -shape.hidden) return PLLM_BAD_STRIDE;
  return check_pointer(pointer, size_of(shape.x_type));
}

inline int first_of(int code) { return code; }
template <class... Codes>
int first_of(int code, Codes... others) {
  return code ? code : first_of(others...);
}

inline int check(const pllm_rms_norm_forward& a) {
  if (int code = check(a.shape)) return code;
  if ((a.residual == nullptr) != (a.sum == nullptr)) return PLLM_NULL_POINTER;
  if (a.shape.rows == 0) return PLLM_OK;  // an empty tensor may have no memory
  const int64_t size = size_of(a.shape.x_type);
  return first_of(check_pointer(a.x, size), check_pointer(a.weight, size_of(a.shape.weight_type)),
                  check_output(a.y, a.y_stride, a.shape), a.residual ? check_pointer(a.residual, size) : PLLM_OK,
                  a.sum ? check_output(a.sum, a.sum_stride, a.shape) : PLLM_OK,
                  a.invvar ? check_pointer(a.invvar, 4) : PLLM_OK);
}

inline int check(const pllm_rms_norm_backward& a, int64_t workspace_needed) {
  if (int code = check(a.shape)) return code;
  if (a.dweight) {
    if (int code = check_pointer(a.dweight, size_of(a.shape.weight_type))) return code;
  }
  if (a.shape.rows == 0) return PLLM_OK;
  if (workspace_needed > 0 && (a.workspace == nullptr || a.workspace_size < workspace_needed)) return PLLM_BAD_WORKSPACE;
  if (reinterpret_cast<uintptr_t>(a.workspace) % sizeof(float)) return PLLM_MISALIGNED;
  const int64_t size = size_of(a.shape.x_type);
  return first_of(check_pointer(a.dy, size), check_pointer(a.x, size),
                  check_pointer(a.weight, size_of(a.shape.weight_type)), check_pointer(a.invvar, 4),
                  check_output(a.dx, a.dx_stride, a.shape), a.dsum ? check_pointer(a.dsum, size) : PLLM_OK);
}

inline const char* message(int code) {
  switch (code) {
    case PLLM_OK: return "no error";
    case PLLM_BAD_SHAPE: return "rows must be 0 or more, hidden from 1 to 65536";
    case PLLM_BAD_TYPE: return "x must be fp32, fp16 or bf16, weight fp32 or of x's type";
    case PLLM_BAD_ROUNDING: return "rounding must be PLLM_ROUND_FP32 or PLLM_ROUND_LLAMA";
    case PLLM_BAD_EPSILON: return "epsilon must be 0 or more";
    case PLLM_NULL_POINTER: return "a required tensor is missing; residual and sum must be given together";
    case PLLM_BAD_STRIDE: return "the rows of an output overlap";
    case PLLM_MISALIGNED: return "a pointer is not aligned to its element's size";
    case PLLM_BAD_WORKSPACE: return "the workspace is missing or too small";
    case PLLM_BAD_OPTION: return "threads is negative, the processor lacks the instruction set, or stores is not one of PLLM_STORES_*";
    default: return "unknown code";
  }
}

}  // namespace pllm

#endif  // PLLM_RMS_NORM_CHECK_H_
