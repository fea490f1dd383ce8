// RMSNorm's backward kernels. dweight is summed in two stages, without atomics: each block leaves a row of partial sums, then
// finish_dweight adds these up in a fixed order.
#ifndef PLLM_RMS_NORM_BACKWARD_CUH_
#define PLLM_RMS_NORM_BACKWARD_CUH_

#include "rms_norm.h"
#include "rms_norm_device.cuh"

namespace pllm {

// After so many rows a running sum of dweight goes into the block's partial: it stays as exact as fp32 allows however many rows.
constexpr int kFlushRows = 128;

constexpr int kMaxStages = 4;

// partial[0 .. kCount) of one pack (+)= sums, which start again at zero.
template <int kCount>
__device__ inline void flush(float (&sums)[kCount], float* partial, bool first) {
  if (!first) {
    float before[kCount];  // read at once: the compiler may not move a load before a store
#pragma unroll
    for (int i = 0; i < kCount; ++i) before[i] = partial[i];
#pragma unroll
    for (int i = 0; i < kCount; ++i) sums[i] += before[i];
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    partial[i] = sums[i];
    sums[i] = 0.0f;
  }
}

// The terms of sum(g * n) of one pack.
template <class T, class W, bool kVector>
__device__ inline float products_of(const Pack<T, kVector>& dy, const Pack<T, kVector>& x,
                                    const Weights<W, Pack<T, kVector>::kCount>& weight, float invvar) {
  constexpr int kCount = Pack<T, kVector>::kCount;
  float dy_value[kCount], x_value[kCount], weights[kCount], sum = 0.0f;
  dy.unpack(dy_value);
  x.unpack(x_value);
  weight.unpack(weights);
#pragma unroll
  for (int i = 0; i < kCount; ++i) sum += dy_value[i] * weights[i] * (x_value[i] * invvar);
  return sum;
}

// dx of one pack, `dsum` (if any) added; and what the pack adds to dweight.
template <class T, class W, bool kVector>
__device__ inline Pack<T, kVector> gradient(const Pack<T, kVector>& dy, const Pack<T, kVector>& x, const Pack<T, kVector>* dsum,
                                            const Weights<W, Pack<T, kVector>::kCount>& weight, float invvar, float mean, bool llama,
                                            float (&dweight)[Pack<T, kVector>::kCount]) {
  constexpr int kCount = Pack<T, kVector>::kCount;
  float dy_value[kCount], x_value[kCount], weights[kCount];
  dy.unpack(dy_value);
  x.unpack(x_value);
  weight.unpack(weights);
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const float n = x_value[i] * invvar;
    dweight[i] += dy_value[i] * (llama ? rounded<T>(n) : n);
    x_value[i] = invvar * (dy_value[i] * weights[i] - n * mean);
  }
  if (dsum) {
    float extra[kCount];
    load(dsum).unpack(extra);
#pragma unroll
    for (int i = 0; i < kCount; ++i) x_value[i] += extra[i];
  }
  Pack<T, kVector> dx;
  dx.pack(x_value);
  return dx;
}

// Waits until at most `groups` groups of copies are under way; the instruction wants a constant.
__device__ inline void copies_wait_for(int groups) {
  if (groups == 3) {
    copies_wait<3>();
  } else if (groups == 2) {
    copies_wait<2>();
  } else if (groups == 1) {
    copies_wait<1>();
  } else {
    copies_wait<0>();
  }
}

// The rows that a block has on their way into shared memory. Each thread copies the packs that it will read itself, so that no
// barrier is needed: [stage][k][dy, x, dsum][thread] packs.
template <class T, int kPacks>
struct Stages {
  using P = Pack<T, true>;
  P* mine;  // this thread's first pack
  int packs, tensors;

  // This thread's first pack of a stage; the next one is blockDim.x further on.
  __device__ P* at(int stage) const { return mine + stage * kPacks * tensors * static_cast<int>(blockDim.x); }
  // Begins to copy a row, as one group; beyond the last row the group is empty, so that groups can be counted all the same.
  __device__ void begin(int stage, int64_t row, const pllm_rms_norm_backward& a) const {
    if (row < a.shape.rows) {
      const P* dy = reinterpret_cast<const P*>(static_cast<const T*>(a.dy) + row * a.dy_stride);
      const P* x = reinterpret_cast<const P*>(static_cast<const T*>(a.x) + row * a.x_stride);
      const P* dsum = reinterpret_cast<const P*>(static_cast<const T*>(a.dsum) + row * a.dsum_stride);
      P* to = at(stage);
#pragma unroll
      for (int k = 0; k < kPacks; ++k, to += tensors * blockDim.x) {
        const int pack = threadIdx.x + k * blockDim.x;
        if (pack >= packs) break;
        copy_16(to, dy + pack);
        copy_16(to + blockDim.x, x + pack);
        if (tensors == 3) copy_16(to + 2 * blockDim.x, dsum + pack);
      }
    }
    copies_end();
  }
};

constexpr int backward_threads(int) { return 512; }
constexpr int backward_blocks(int packs) { return packs <= 2 ? 2 : 1; }

// Persistent blocks: block b takes rows b, b + gridDim.x, ...; its sums for dweight stay in registers. While a row is worked on, the
// next ones (stages - 1 of them) are copied into shared memory. partials: [gridDim.x, hidden], or null.
template <class T, class W, int kPacks>
__global__ void __launch_bounds__(backward_threads(kPacks), backward_blocks(kPacks))
    backward_in_registers(const pllm_rms_norm_backward a, float* partials, int stages) {
  using P = Pack<T, true>;
  extern __shared__ uint4 dynamic_shared[];
  __shared__ float buffers[2 * kWarp];
  RowSum row_sum = {buffers};
  const int packs = static_cast<int>(a.shape.hidden / P::kCount);
  const bool llama = a.shape.rounding == PLLM_ROUND_LLAMA;
  const Stages<T, kPacks> rows = {reinterpret_cast<P*>(dynamic_shared) + threadIdx.x, packs, a.dsum ? 3 : 2};

  // Weights that are wider than x are read again each time: they would take the registers that a second block needs.
  constexpr bool kKept = sizeof(W) == sizeof(T) || kPacks == 1;
  Weights<W, P::kCount> weight[kPacks];
  float dweight[kPacks][P::kCount] = {};
#pragma unroll
  for (int k = 0; k < kPacks; ++k) {
    const int pack = threadIdx.x + k * blockDim.x;
    if (pack < packs) weight[k] = Weights<W, P::kCount>::of(a.weight, pack);
  }

  int64_t row = blockIdx.x;
  for (int s = 0; s + 1 < stages; ++s) rows.begin(s, row + s * static_cast<int64_t>(gridDim.x), a);
  float next_invvar = row < a.shape.rows ? a.invvar[row] : 0.0f;
  int stage = 0;
  int summed = 0;
  for (; row < a.shape.rows; row += gridDim.x) {
    // The stage that is filled now was read by this thread in the last turn.
    rows.begin(stage ? stage - 1 : stages - 1, row + (stages - 1) * static_cast<int64_t>(gridDim.x), a);
    const float invvar = next_invvar;
    if (row + gridDim.x < a.shape.rows) next_invvar = a.invvar[row + gridDim.x];
    copies_wait_for(stages - 1);

    const P* row_packs = rows.at(stage);
    const int stride = rows.tensors * blockDim.x;
    float products = 0.0f;
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      const P* p = row_packs + k * stride;
      const int pack = threadIdx.x + k * blockDim.x;
      if (pack < packs) {
        if (!kKept) weight[k] = Weights<W, P::kCount>::of(a.weight, pack);
        weight[k].forget();
        products += products_of<T, W>(load(p), load(p + blockDim.x), weight[k], invvar);
      }
    }
    const float mean = row_sum(products) / static_cast<float>(a.shape.hidden);

    P* dx = reinterpret_cast<P*>(static_cast<T*>(a.dx) + row * a.dx_stride);
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      const int pack = threadIdx.x + k * blockDim.x;
      if (pack < packs) {
        const P* p = row_packs + k * stride;
        if (!kKept) weight[k] = Weights<W, P::kCount>::of(a.weight, pack);
        weight[k].forget();
        const P* dsum = a.dsum ? p + 2 * blockDim.x : nullptr;
        store(dx + pack, gradient<T, W>(load(p), load(p + blockDim.x), dsum, weight[k], invvar, mean, llama, dweight[k]));
      }
    }
    stage = stage + 1 == stages ? 0 : stage + 1;
    ++summed;
    if (partials && (summed % kFlushRows == 0 || row + gridDim.x >= a.shape.rows)) {
      float* partial = partials + blockIdx.x * a.shape.hidden;
#pragma unroll
      for (int k = 0; k < kPacks; ++k) {
        const int pack = threadIdx.x + k * blockDim.x;
        if (pack < packs) flush(dweight[k], partial + pack * P::kCount, summed <= kFlushRows);
      }
    }
  }
}

// ---- Rows that are too long for the above, or not aligned: means first, then columns, each block a few of all rows.

// means[row] = mean(g * n).
template <class T, class W, bool kVector>
__global__ void __launch_bounds__(1024) backward_means(const pllm_rms_norm_backward a, float* means) {
  using P = Pack<T, kVector>;
  __shared__ float buffers[2 * kWarp];
  RowSum row_sum = {buffers};
  const int packs = static_cast<int>(a.shape.hidden / P::kCount);
  for (int64_t row = blockIdx.x; row < a.shape.rows; row += gridDim.x) {
    const P* dy = reinterpret_cast<const P*>(static_cast<const T*>(a.dy) + row * a.dy_stride);
    const P* x = reinterpret_cast<const P*>(static_cast<const T*>(a.x) + row * a.x_stride);
    const float invvar = a.invvar[row];
    float products = 0.0f;
#pragma unroll 2
    for (int pack = threadIdx.x; pack < packs; pack += blockDim.x) {
      products += products_of<T, W>(load(dy + pack), load(x + pack), Weights<W, P::kCount>::of(a.weight, pack), invvar);
    }
    const float mean = row_sum(products) / static_cast<float>(a.shape.hidden);
    if (threadIdx.x == 0) means[row] = mean;
  }
}

// Block (i, j): pack blockDim.x * i + threadIdx.x of rows [j, j + 1) * rows_per_block. partials: [gridDim.y, hidden], or null.
template <class T, class W, bool kVector>
__global__ void __launch_bounds__(256)
    backward_columns(const pllm_rms_norm_backward a, const float* means, float* partials, int64_t rows_per_block) {
  using P = Pack<T, kVector>;
  const int pack = blockIdx.x * blockDim.x + threadIdx.x;
  if (pack >= static_cast<int>(a.shape.hidden / P::kCount)) return;
  const bool llama = a.shape.rounding == PLLM_ROUND_LLAMA;
  const Weights<W, P::kCount> weight = Weights<W, P::kCount>::of(a.weight, pack);
  float* partial = partials ? partials + blockIdx.y * a.shape.hidden + static_cast<int64_t>(pack) * P::kCount : nullptr;
  float dweight[P::kCount] = {};
  int64_t row = blockIdx.y * rows_per_block;
  const int64_t end = row + rows_per_block < a.shape.rows ? row + rows_per_block : a.shape.rows;
  bool first = true;
  while (row < end) {
    const int64_t until = row + kFlushRows < end ? row + kFlushRows : end;
    for (; row < until; ++row) {
      const P* dy = reinterpret_cast<const P*>(static_cast<const T*>(a.dy) + row * a.dy_stride) + pack;
      const P* x = reinterpret_cast<const P*>(static_cast<const T*>(a.x) + row * a.x_stride) + pack;
      const P* dsum = a.dsum ? reinterpret_cast<const P*>(static_cast<const T*>(a.dsum) + row * a.dsum_stride) + pack : nullptr;
      P* dx = reinterpret_cast<P*>(static_cast<T*>(a.dx) + row * a.dx_stride) + pack;
      store(dx, gradient<T, W>(load(dy), load(x), dsum, weight, a.invvar[row], means[row], llama, dweight));
    }
    if (partials) flush(dweight, partial, first);
    first = false;
  }
}

// dweight = sum of `count` rows of partials [count, hidden]: a block takes blockDim.x columns, its blockDim.y (a power of two) lanes
// take every blockDim.y-th row, then lanes are added in halves. shared: blockDim.x * blockDim.y floats.
template <class W>
__global__ void __launch_bounds__(1024) finish_dweight(const float* partials, int count, int hidden, W* dweight) {
  extern __shared__ float sums[];
  const int column = blockIdx.x * blockDim.x + threadIdx.x;
  float sum = 0.0f;
  if (column < hidden) {
#pragma unroll 4
    for (int row = threadIdx.y; row < count; row += blockDim.y) sum += partials[static_cast<int64_t>(row) * hidden + column];
  }
  float* mine = sums + threadIdx.y * blockDim.x + threadIdx.x;
  *mine = sum;
  for (int half = blockDim.y / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.y < half) *mine += mine[half * blockDim.x];
  }
  if (threadIdx.y == 0 && column < hidden) narrow(*mine, &dweight[column]);
}

}  // namespace pllm

#endif  // PLLM_RMS_NORM_BACKWARD_CUH_
