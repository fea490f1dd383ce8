// RMSNorm on a CPU: the launchers of rms_norm.h. Chooses the instruction set, deals rows to OpenMP's threads, and sums dweight.
//
// Which thread does what never shows in the result: a row is one thread's, and dweight is summed over parts of the rows that
// depend on the shape alone.
#include <omp.h>

#include <cstdint>
#include <cstdio>
#include <initializer_list>
#include <vector>

#include "rms_norm.h"
#include "rms_norm_check.h"
#include "rms_norm_cpu_table.h"

namespace pllm {

#if defined(__x86_64__)
const bool kReadOnce = (__builtin_cpu_init(), __builtin_cpu_is("amd"));
#else
const bool kReadOnce = false;
#endif

namespace {

const CpuKernels* kernels_for(int isa) {
  switch (isa) {
    case PLLM_ISA_PORTABLE: return portable_kernels();
#if defined(__x86_64__)
    case PLLM_ISA_AVX2: return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c") ? avx2_kernels() : nullptr;
    case PLLM_ISA_AVX512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")
                 ? avx512_kernels()
                 : nullptr;
#endif
    default: return nullptr;
  }
}

int best_isa() {
  for (int isa : {PLLM_ISA_AVX512, PLLM_ISA_AVX2}) {
    if (kernels_for(isa)) return isa;
  }
  return PLLM_ISA_PORTABLE;
}

struct Plan {
  const CpuKernels* kernels = nullptr;
  int threads = 1;
  bool stream = false;  // if the outputs are aligned
};

// Stores that bypass the caches save the reading of each line before it is overwritten, a third of forward's traffic. They pay once
// the tensors would not stay in the last cache anyway; below that whoever reads the result next wants it there. At most as much is
// counted as a few cores have: a socket's (of 260 MiB, say) is everybody's, and a virtual machine does not say how many there are. Linux's own
// figure: sysconf's is that of a whole socket where these threads have a part of their own, too.
constexpr long long kMostKib = 32 << 10;
int64_t cache_bytes() {
  static const int64_t bytes = [] {
    long long kib = 0;
    if (std::FILE* file = std::fopen("/sys/devices/system/cpu/cpu0/cache/index3/size", "re")) {
      if (std::fscanf(file, "%lldK", &kib) != 1) kib = 0;
      std::fclose(file);
    }
    return kib > 0 && kib < kMostKib ? int64_t{kib} << 10 : int64_t{kMostKib} << 10;
  }();
  return bytes;
}

// `tensors`: how many matrices are read and written.
int plan_of(const pllm_cpu_options* options, const pllm_rms_norm_shape& shape, int tensors, Plan* plan) {
  static const int best = best_isa();
  const pllm_cpu_options chosen = options ? *options : pllm_cpu_options{};
  plan->kernels = kernels_for(chosen.isa == PLLM_ISA_BEST ? best : chosen.isa);
  if (!plan->kernels || chosen.threads < 0) return PLLM_BAD_OPTION;
  if (chosen.stores < PLLM_STORES_AUTO || chosen.stores > PLLM_STORES_STREAM) return PLLM_BAD_OPTION;
  plan->threads = chosen.threads ? chosen.threads : omp_get_max_threads();
  const int64_t elements = shape.rows * shape.hidden;
  // Waking a thread costs microseconds: what one thread does in less is not dealt out.
  if (elements <= (1 << 14)) plan->threads = 1;
  plan->stream = chosen.stores == PLLM_STORES_STREAM ||
                 (chosen.stores == PLLM_STORES_AUTO && elements * size_of(shape.x_type) * tensors > cache_bytes());
  return PLLM_OK;
}

// Every row starts on a cache line, so that none is written in parts.
bool is_aligned(const void* pointer, int64_t stride, const pllm_rms_norm_shape& shape) {
  constexpr int64_t kLine = 64;
  return reinterpret_cast<uintptr_t>(pointer) % kLine == 0 && stride * size_of(shape.x_type) % kLine == 0;
}

struct alignas(64) CacheLine {
  char bytes[64];
};
size_t lines_of(const pllm_rms_norm_shape& shape) {  // that hold a row
  return static_cast<size_t>((shape.hidden * size_of(shape.x_type) + 63) / 64);
}

// Part `index` of `count` parts of [0, total), in multiples of `unit`.
struct Range {
  int64_t begin, end;
};
Range part_of(int64_t total, int64_t index, int64_t count, int64_t unit) {
  const int64_t units = (total + unit - 1) / unit;
  const int64_t begin = units * index / count * unit, end = units * (index + 1) / count * unit;
  return {begin < total ? begin : total, end < total ? end : total};
}

// The rows of one partial sum of dweight: at most kMaxPartials of them, in multiples of kBlockRows.
int64_t rows_per_partial(int64_t rows) {
  const int64_t unit = kBlockRows * kMaxPartials;
  return (rows + unit - 1) / unit * kBlockRows;
}
int64_t partials_of(int64_t rows) { return rows ? (rows + rows_per_partial(rows) - 1) / rows_per_partial(rows) : 0; }

// Each partial has two rows of the workspace: its total, and the block of rows that is being summed.
void sum_partial(const pllm_rms_norm_backward& a, const CpuKernels& kernels, bool stream, int64_t index) {
  float* total = static_cast<float*>(a.workspace) + index * 2 * padded(a.shape.hidden);
  float* block = total + padded(a.shape.hidden);
  const int64_t rows = rows_per_partial(a.shape.rows);
  const int64_t begin = index * rows, end = begin + rows < a.shape.rows ? begin + rows : a.shape.rows;
  for (int64_t r = begin; r < end; r += kBlockRows) {
    const int64_t until = r + kBlockRows < end ? r + kBlockRows : end;
    kernels.backward(a, r, until, stream, r == begin ? total : block);
    if (r != begin) kernels.add(total, block, a.shape.hidden);
  }
}

}  // namespace
}  // namespace pllm

using pllm::Plan;
using pllm::Range;

extern "C" {

const char* pllm_rms_norm_message(int code) { return pllm::message(code); }

int pllm_rms_norm_cpu_isa(void) { return pllm::best_isa(); }

const char* pllm_rms_norm_cpu_isa_name(int isa) {
  switch (isa) {
    case PLLM_ISA_PORTABLE: return "portable";
    case PLLM_ISA_AVX2: return "avx2";
    case PLLM_ISA_AVX512: return "avx512";
    default: return nullptr;
  }
}

int64_t pllm_rms_norm_cpu_cache(void) { return pllm::cache_bytes(); }

int64_t pllm_rms_norm_workspace_cpu(const pllm_rms_norm_shape* shape, int want_dweight) {
  if (int code = pllm::check(*shape)) return -code;
  if (!want_dweight) return 0;
  return pllm::partials_of(shape->rows) * 2 * pllm::padded(shape->hidden) * static_cast<int64_t>(sizeof(float));
}

int pllm_rms_norm_forward_cpu(const pllm_rms_norm_forward* args, const pllm_cpu_options* options) {
  const pllm_rms_norm_forward& a = *args;
  if (int code = pllm::check(a)) return code;
  Plan plan;
  if (int code = pllm::plan_of(options, a.shape, a.residual ? 4 : 2, &plan)) return code;
  const bool stream = plan.stream && pllm::is_aligned(a.y, a.y_stride, a.shape) &&
                      (!a.sum || pllm::is_aligned(a.sum, a.sum_stride, a.shape));
#pragma omp parallel for schedule(static, 1) num_threads(plan.threads)
  for (int t = 0; t < plan.threads; ++t) {
    const Range range = pllm::part_of(a.shape.rows, t, plan.threads, 1);
    std::vector<pllm::CacheLine> spare_row(a.residual ? pllm::lines_of(a.shape) : 0);
    plan.kernels->forward(a, range.begin, range.end, stream, spare_row.data());
  }
  return PLLM_OK;
}

int pllm_rms_norm_backward_cpu(const pllm_rms_norm_backward* args, const pllm_cpu_options* options) {
  const pllm_rms_norm_backward& a = *args;
  if (int code = pllm::check(a.shape)) return code;
  if (int code = pllm::check(a, pllm_rms_norm_workspace_cpu(&a.shape, a.dweight != nullptr))) return code;
  Plan plan;
  if (int code = pllm::plan_of(options, a.shape, a.dsum ? 4 : 3, &plan)) return code;
  const bool stream = plan.stream && pllm::is_aligned(a.dx, a.dx_stride, a.shape);
  if (!a.dweight) {
#pragma omp parallel for schedule(static, 1) num_threads(plan.threads)
    for (int t = 0; t < plan.threads; ++t) {
      const Range range = pllm::part_of(a.shape.rows, t, plan.threads, 1);
      plan.kernels->backward(a, range.begin, range.end, stream, nullptr);
    }
    return PLLM_OK;
  }
  const int64_t partials = pllm::partials_of(a.shape.rows);
#pragma omp parallel num_threads(plan.threads)
  {
#pragma omp for schedule(static)
    for (int64_t p = 0; p < partials; ++p) pllm::sum_partial(a, *plan.kernels, stream, p);
#pragma omp for schedule(static, 1)
    for (int t = 0; t < plan.threads; ++t) {
      const Range range = pllm::part_of(a.shape.hidden, t, plan.threads, 64);
      plan.kernels->finish(a, static_cast<const float*>(a.workspace), partials, 2 * pllm::padded(a.shape.hidden), range.begin,
                           range.end);
    }
  }
  return PLLM_OK;
}

}  // extern "C"
