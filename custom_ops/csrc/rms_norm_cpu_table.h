// What each instruction set offers the launchers of rms_norm_cpu.cpp: kernels that work on a range of rows or columns in one
// thread. One table per rms_norm_cpu_<isa>.cpp; null where the build has not got it.
#ifndef PLLM_RMS_NORM_CPU_TABLE_H_
#define PLLM_RMS_NORM_CPU_TABLE_H_

#include <cstdint>

#include "rms_norm.h"

namespace pllm {

// The sums below are what makes results independent of threads: a row's in blocks of this many elements, dweight's in this many
// rows. Both keep fp32's error near one rounding, since no running sum has more than a few dozen terms.
constexpr int64_t kBlockElements = 1024;
constexpr int64_t kBlockRows = 32;
constexpr int64_t kMaxPartials = 128;

// Whether what is fetched ahead is said to be read once (rms_norm_cpu_rows.h).
extern const bool kReadOnce;

// Rows of partial sums are padded to what the widest vector of any instruction set works on at once, and start on a cache line.
inline int64_t padded(int64_t hidden) { return (hidden + 31) / 32 * 32; }

struct CpuKernels {
  // Rows [begin, end). `stream`: outputs bypass the caches (they are aligned to a cache line, and larger than the caches anyway).
  // `spare_row`: room for a row of x's type, of the thread's own; used with a residual.
  void (*forward)(const pllm_rms_norm_forward& args, int64_t begin, int64_t end, bool stream, void* spare_row);
  // Likewise; `dweight` [padded(hidden)] receives the rows' sum of dy * n in an order of their own; null: not wanted.
  void (*backward)(const pllm_rms_norm_backward& args, int64_t begin, int64_t end, bool stream, float* dweight);
  // into[i] += from[i] for i in [0, padded(hidden)).
  void (*add)(float* into, const float* from, int64_t hidden);
  // The backward's dweight[begin, end) = sum of `count` partial sums, rows of partials [count, stride].
  void (*finish)(const pllm_rms_norm_backward& args, const float* partials, int64_t count, int64_t stride, int64_t begin,
                 int64_t end);
};

const CpuKernels* portable_kernels();
const CpuKernels* avx2_kernels();    // null where the compiler's target has no AVX2
const CpuKernels* avx512_kernels();  // likewise

}  // namespace pllm

#endif  // PLLM_RMS_NORM_CPU_TABLE_H_
