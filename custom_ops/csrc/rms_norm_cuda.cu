// RMSNorm on CUDA: the launchers of rms_norm.h. Chooses a kernel and its configuration by hidden size, type and alignment.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "rms_norm.cuh"
#include "rms_norm.h"
#include "rms_norm_check.h"

namespace pllm {
namespace {

int code_of(cudaError_t error) { return error == cudaSuccess ? PLLM_OK : PLLM_CUDA_ERROR + static_cast<int>(error); }

template <class T>
struct Same {
  using type = T;
};

// Not <<<>>>: this hands the error back and leaves alone what cudaGetLastError keeps for others.
template <class... Args>
int launch(void (*kernel)(Args...), dim3 grid, dim3 block, int64_t shared, void* stream, typename Same<Args>::type... args) {
  void* pointers[] = {&args...};
  return code_of(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, block, pointers, static_cast<size_t>(shared),
                                  static_cast<cudaStream_t>(stream)));
}

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
unsigned threads_for(int64_t packs) { return static_cast<unsigned>(divide_up(packs, kWarp) * kWarp); }
// Rows beyond this are taken by blocks that have done one (the grid's own bound is 2^31 - 1).
unsigned blocks_for(int64_t blocks) { return static_cast<unsigned>(std::min<int64_t>(blocks, 1 << 30)); }

constexpr int kStaticShared = 2 * kWarp * sizeof(float);  // bytes: RowSum's, of every kernel that has one

struct Device {
  int processors, shared_per_processor, shared_per_block;
  int dynamic_shared() const { return shared_per_block - kStaticShared; }
};

int ask(Device* device) {
  int id = 0;
  cudaError_t error = cudaGetDevice(&id);
  const struct {
    int* value;
    cudaDeviceAttr attribute;
  } wanted[] = {{&device->processors, cudaDevAttrMultiProcessorCount},
                {&device->shared_per_processor, cudaDevAttrMaxSharedMemoryPerMultiprocessor},
                {&device->shared_per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin}};
  for (const auto& each : wanted) {
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(each.value, each.attribute, id);
  }
  return code_of(error);
}

// Whether the rows of a matrix (or weight, with stride 0) may be read 16 bytes at a time. A missing one does not mind.
bool is_aligned(const void* pointer, int64_t stride, int64_t size, const pllm_rms_norm_shape& shape) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0 && (shape.rows <= 1 || stride * size % 16 == 0);
}

// ---- Forward.

template <class T, class W, int kPacks>
int forward_by_registers(const pllm_rms_norm_forward& a, int64_t packs, void* stream) {
  const unsigned threads = threads_for(divide_up(packs, kPacks));
  const unsigned rows = threads == kWarp ? 4 : 1;  // per block
  return launch(forward_in_registers<T, W, kPacks>, blocks_for(divide_up(a.shape.rows, rows)), dim3(threads, rows), 0, stream, a);
}

template <class T, class W, bool kVector>
int forward_by_reads(const pllm_rms_norm_forward& a, void* stream) {
  const int64_t packs = a.shape.hidden / Pack<T, kVector>::kCount;
  const unsigned threads = threads_for(std::min<int64_t>(divide_up(packs, 4), 1024));
  return launch(forward_in_two_reads<T, W, kVector>, blocks_for(a.shape.rows), threads, 0, stream, a);
}

template <class T, class W>
int forward(const pllm_rms_norm_forward& a, void* stream) {
  constexpr int64_t kCount = Pack<T, true>::kCount, kSize = sizeof(T);
  const bool aligned = a.shape.hidden % kCount == 0 && is_aligned(a.x, a.x_stride, kSize, a.shape) &&
                       is_aligned(a.y, a.y_stride, kSize, a.shape) && is_aligned(a.weight, 0, kSize, a.shape) &&
                       (!a.residual || (is_aligned(a.residual, a.residual_stride, kSize, a.shape) &&
                                        is_aligned(a.sum, a.sum_stride, kSize, a.shape)));
  if (!aligned) return forward_by_reads<T, W, false>(a, stream);
  const int64_t packs = a.shape.hidden / kCount;
  // Up to 128 packs a warp is enough for a row; beyond, enough threads to have the row in flight at once, and small blocks so that
  // others of the multiprocessor read while this one writes.
  if (packs <= 1 * kWarp) return forward_by_registers<T, W, 1>(a, packs, stream);
  if (packs <= 2 * kWarp) return forward_by_registers<T, W, 2>(a, packs, stream);
  if (packs <= 4 * kWarp) return forward_by_registers<T, W, 4>(a, packs, stream);
  if (packs <= 2 * forward_threads(2)) return forward_by_registers<T, W, 2>(a, packs, stream);
  if (packs <= 4 * forward_threads(4)) return forward_by_registers<T, W, 4>(a, packs, stream);
  return forward_by_reads<T, W, true>(a, stream);
}

// ---- Backward.

// How dweight is summed: `blocks` rows of partial sums; for the kernels of long or unaligned rows, each of `rows` rows.
struct Partials {
  int64_t blocks, rows;
};

int packs_per_thread(int64_t packs) { return packs <= 512 ? 1 : packs <= 1024 ? 2 : packs <= 2048 ? 4 : 0; }

// Persistent blocks: 1024 threads per multiprocessor, which is what 64 registers each allow (512 where it is 128).
unsigned persistent_threads(int64_t packs) { return threads_for(divide_up(packs, packs_per_thread(packs))); }
int64_t blocks_per_processor(int64_t packs) {
  return packs_per_thread(packs) == 4 ? 1 : std::min<int64_t>(16, 1024 / persistent_threads(packs));
}
Partials partials_of_registers(const pllm_rms_norm_shape& shape, int64_t packs, const Device& device) {
  return {std::min<int64_t>(shape.rows, device.processors * blocks_per_processor(packs)), 0};
}
// Enough blocks of 256 columns times some rows to fill the device, of at least 32 rows each.
Partials partials_of_columns(const pllm_rms_norm_shape& shape, int64_t packs, const Device& device) {
  const int64_t wanted = std::max<int64_t>(1, device.processors * 8 / divide_up(packs, 256));
  const int64_t blocks = std::max<int64_t>(1, std::min<int64_t>({wanted, divide_up(shape.rows, 32), 65535}));
  const int64_t rows = std::max<int64_t>(1, divide_up(shape.rows, blocks));
  return {divide_up(shape.rows, rows), rows};
}

// The kernels of columns keep one mean per row in front of the partial sums.
int64_t means_size(int64_t rows) { return divide_up(rows, 4) * 4; }

int64_t workspace_of(const pllm_rms_norm_shape& shape, bool want_dweight, const Device& device) {
  int64_t floats = means_size(shape.rows);
  const int64_t count = 16 / size_of(shape.x_type), packs = divide_up(shape.hidden, count);
  if (want_dweight) {
    // Which kernel it will be depends on alignment: enough for each.
    const int64_t columns = std::max(partials_of_columns(shape, packs, device).blocks,
                                     partials_of_columns(shape, shape.hidden, device).blocks);
    floats += columns * shape.hidden;
    if (packs_per_thread(packs)) {
      floats = std::max(floats, partials_of_registers(shape, packs, device).blocks * shape.hidden);
    }
  }
  return floats * static_cast<int64_t>(sizeof(float));
}

template <class W>
int finish(const float* partials, int64_t count, const pllm_rms_norm_backward& a, void* stream) {
  // Short rows: narrow blocks, or there would be too few of them.
  const unsigned columns = a.shape.hidden >= 4096 ? 32 : 8, lanes = 1024 / columns;
  return launch(finish_dweight<W>, static_cast<unsigned>(divide_up(a.shape.hidden, columns)), dim3(columns, lanes),
                1024 * sizeof(float), stream, partials, static_cast<int>(count), static_cast<int>(a.shape.hidden),
                static_cast<W*>(a.dweight));
}

template <class T, class W, int kPacks>
int backward_by_registers(const pllm_rms_norm_backward& a, int64_t packs, int stages, int64_t shared, const Device& device,
                          void* stream) {
  const auto kernel = backward_in_registers<T, W, kPacks>;
  const void* function = reinterpret_cast<const void*>(kernel);
  // All that there is, not what this call takes: the attribute is the function's, and another thread may be between here and launch.
  cudaError_t error = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, device.dynamic_shared());
  if (error == cudaSuccess) {
    error = cudaFuncSetAttribute(function, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  }
  if (error != cudaSuccess) return code_of(error);
  const int64_t blocks = partials_of_registers(a.shape, packs, device).blocks;
  float* partials = a.dweight ? static_cast<float*>(a.workspace) : nullptr;
  if (int code = launch(kernel, static_cast<unsigned>(blocks), persistent_threads(packs), shared, stream, a, partials, stages)) {
    return code;
  }
  return a.dweight ? finish<W>(partials, blocks, a, stream) : PLLM_OK;
}

template <class T, class W, bool kVector>
int backward_by_columns(const pllm_rms_norm_backward& a, const Device& device, void* stream) {
  const int64_t packs = a.shape.hidden / Pack<T, kVector>::kCount;
  float* means = static_cast<float*>(a.workspace);
  float* partials = a.dweight ? means + means_size(a.shape.rows) : nullptr;
  const unsigned threads = threads_for(std::min<int64_t>(divide_up(packs, 4), 1024));
  if (int code = launch(backward_means<T, W, kVector>, blocks_for(a.shape.rows), threads, 0, stream, a, means)) return code;
  const Partials parts = partials_of_columns(a.shape, packs, device);
  const unsigned width = threads_for(std::min<int64_t>(packs, 256));
  const dim3 grid(static_cast<unsigned>(divide_up(packs, width)), static_cast<unsigned>(parts.blocks));
  if (int code = launch(backward_columns<T, W, kVector>, grid, width, 0, stream, a, means, partials, parts.rows)) return code;
  return a.dweight ? finish<W>(partials, parts.blocks, a, stream) : PLLM_OK;
}

template <class T, class W>
int backward(const pllm_rms_norm_backward& a, const Device& device, void* stream) {
  constexpr int64_t kCount = Pack<T, true>::kCount, kSize = sizeof(T);
  const bool aligned = a.shape.hidden % kCount == 0 && is_aligned(a.dy, a.dy_stride, kSize, a.shape) &&
                       is_aligned(a.x, a.x_stride, kSize, a.shape) && is_aligned(a.dx, a.dx_stride, kSize, a.shape) &&
                       is_aligned(a.weight, 0, kSize, a.shape) && is_aligned(a.dsum, a.dsum_stride, kSize, a.shape);
  if (!aligned) return backward_by_columns<T, W, false>(a, device, stream);
  const int64_t packs = a.shape.hidden / kCount;
  const int each = packs_per_thread(packs);
  if (each == 0) return backward_by_columns<T, W, true>(a, device, stream);
  // As many rows on their way as shared memory holds. 1 KiB per block is the system's.
  const int64_t row = static_cast<int64_t>(persistent_threads(packs)) * each * 16 * (a.dsum ? 3 : 2);
  const int64_t room = std::min<int64_t>(device.dynamic_shared(),
                                         device.shared_per_processor / blocks_per_processor(packs) - 1024 - kStaticShared);
  const int stages = static_cast<int>(std::min<int64_t>(room / row, kMaxStages));
  if (stages < 1) return backward_by_columns<T, W, true>(a, device, stream);
  switch (each) {
    case 1: return backward_by_registers<T, W, 1>(a, packs, stages, stages * row, device, stream);
    case 2: return backward_by_registers<T, W, 2>(a, packs, stages, stages * row, device, stream);
    default: return backward_by_registers<T, W, 4>(a, packs, stages, stages * row, device, stream);
  }
}

}  // namespace
}  // namespace pllm

extern "C" {

const char* pllm_rms_norm_message_cuda(int code) {
  return code > PLLM_CUDA_ERROR ? cudaGetErrorString(static_cast<cudaError_t>(code - PLLM_CUDA_ERROR)) : pllm::message(code);
}

int64_t pllm_rms_norm_workspace_cuda(const pllm_rms_norm_shape* shape, int want_dweight) {
  if (int code = pllm::check(*shape)) return -code;
  pllm::Device device;
  if (int code = pllm::ask(&device)) return -code;
  return pllm::workspace_of(*shape, want_dweight, device);
}

int pllm_rms_norm_forward_cuda(const pllm_rms_norm_forward* args, void* stream) {
  const pllm_rms_norm_forward& a = *args;
  if (int code = pllm::check(a)) return code;
  if (a.shape.rows == 0) return PLLM_OK;
  const bool mixed = a.shape.weight_type != a.shape.x_type;
  switch (a.shape.x_type) {
    case PLLM_FLOAT16: return (mixed ? pllm::forward<__half, float> : pllm::forward<__half, __half>)(a, stream);
    case PLLM_BFLOAT16:
      return (mixed ? pllm::forward<__nv_bfloat16, float> : pllm::forward<__nv_bfloat16, __nv_bfloat16>)(a, stream);
    default: return pllm::forward<float, float>(a, stream);
  }
}

int pllm_rms_norm_backward_cuda(const pllm_rms_norm_backward* args, void* stream) {
  const pllm_rms_norm_backward& a = *args;
  if (int code = pllm::check(a.shape)) return code;
  pllm::Device device;
  if (int code = pllm::ask(&device)) return code;
  if (int code = pllm::check(a, pllm::workspace_of(a.shape, a.dweight != nullptr, device))) return code;
  if (a.shape.rows == 0) {
    const int64_t bytes = a.shape.hidden * pllm::size_of(a.shape.weight_type);
    if (!a.dweight) return PLLM_OK;
    return pllm::code_of(cudaMemsetAsync(a.dweight, 0, static_cast<size_t>(bytes), static_cast<cudaStream_t>(stream)));
  }
  const bool mixed = a.shape.weight_type != a.shape.x_type;
  switch (a.shape.x_type) {
    case PLLM_FLOAT16: return (mixed ? pllm::backward<__half, float> : pllm::backward<__half, __half>)(a, device, stream);
    case PLLM_BFLOAT16:
      return (mixed ? pllm::backward<__nv_bfloat16, float> : pllm::backward<__nv_bfloat16, __nv_bfloat16>)(a, device, stream);
    default: return pllm::backward<float, float>(a, device, stream);
  }
}

}  // extern "C"
