// RMSNorm's forward kernels: one with the row in registers, one that reads it twice.
//
// A row is dealt to the blockDim.x threads in packs, thread t getting packs t, t + blockDim.x, ..., so that neighbours read
// neighbouring bytes. blockDim.y rows share a block, more than one only where a warp is enough for a row.
#ifndef PLLM_RMS_NORM_FORWARD_CUH_
#define PLLM_RMS_NORM_FORWARD_CUH_

#include "rms_norm.h"
#include "rms_norm_device.cuh"

namespace pllm {

__device__ inline float inverse_rms(float squares, const pllm_rms_norm_shape& shape) {
  return 1.0f / sqrtf(squares / static_cast<float>(shape.hidden) + shape.epsilon);
}

// s = x + residual, rounded to their type.
template <class T, bool kVector>
__device__ inline Pack<T, kVector> add(const Pack<T, kVector>& x, const Pack<T, kVector>& residual) {
  constexpr int kCount = Pack<T, kVector>::kCount;
  float a[kCount], b[kCount];
  x.unpack(a);
  residual.unpack(b);
#pragma unroll
  for (int i = 0; i < kCount; ++i) a[i] += b[i];
  Pack<T, kVector> sum;
  sum.pack(a);
  return sum;
}

template <class T, bool kVector>
__device__ inline float squares_of(const Pack<T, kVector>& s) {
  float value[Pack<T, kVector>::kCount], sum = 0.0f;
  s.unpack(value);
#pragma unroll
  for (int i = 0; i < Pack<T, kVector>::kCount; ++i) sum += value[i] * value[i];
  return sum;
}

template <class T, class W, bool kVector>
__device__ inline Pack<T, kVector> normed(const Pack<T, kVector>& s, float invvar,
                                          const Weights<W, Pack<T, kVector>::kCount>& w, bool llama) {
  constexpr int kCount = Pack<T, kVector>::kCount;
  float value[kCount], weights[kCount];
  s.unpack(value);
  w.unpack(weights);
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const float n = value[i] * invvar;
    value[i] = (llama ? rounded<T>(n) : n) * weights[i];
  }
  Pack<T, kVector> y;
  y.pack(value);
  return y;
}

// Threads of a block at most, and how many such blocks a multiprocessor shall hold: enough for its share of memory's latency.
constexpr int forward_threads(int packs) { return packs <= 2 ? 256 : 512; }
constexpr int forward_blocks(int packs) { return packs <= 2 ? 4 : 2; }

// One pass: kPacks packs per thread stay in registers. hidden <= kPacks * blockDim.x packs, rows aligned to 16 bytes.
template <class T, class W, int kPacks>
__global__ void __launch_bounds__(forward_threads(kPacks), forward_blocks(kPacks)) forward_in_registers(const pllm_rms_norm_forward a) {
  using P = Pack<T, true>;
  __shared__ float buffers[2 * kWarp];
  RowSum row_sum = {buffers};
  const int packs = static_cast<int>(a.shape.hidden / P::kCount);
  const bool llama = a.shape.rounding == PLLM_ROUND_LLAMA;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.y;

  // The bound is the same for all threads of a row, and rows share barriers with none.
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y; row < a.shape.rows; row += step) {
    const P* x = reinterpret_cast<const P*>(static_cast<const T*>(a.x) + row * a.x_stride);
    P s[kPacks] = {};  // zeros add nothing; left out, ptxas would carry what was there before the `if` from row to row
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      const int pack = threadIdx.x + k * blockDim.x;
      if (pack < packs) s[k] = load(x + pack);
    }
    if (a.residual) {
      const P* residual = reinterpret_cast<const P*>(static_cast<const T*>(a.residual) + row * a.residual_stride);
      P* sum = reinterpret_cast<P*>(static_cast<T*>(a.sum) + row * a.sum_stride);
      // Loop by loop, so that all loads are under way at once: none is moved before a store that might be to the same place, and
      // the compiler makes a branch of a sum's `if`.
      P r[kPacks] = {};
#pragma unroll
      for (int k = 0; k < kPacks; ++k) {
        const int pack = threadIdx.x + k * blockDim.x;
        if (pack < packs) r[k] = load(residual + pack);
      }
#pragma unroll
      for (int k = 0; k < kPacks; ++k) {
        const int pack = threadIdx.x + k * blockDim.x;
        if (pack < packs) store(sum + pack, s[k] = add(s[k], r[k]));
      }
    }
    // Before the sum over the row, which they need not wait for; but for many that are wider than x, for want of registers.
    constexpr bool kEarly = sizeof(W) == sizeof(T) || kPacks < 4;
    Weights<W, P::kCount> weight[kPacks] = {};
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      const int pack = threadIdx.x + k * blockDim.x;
      if (kEarly && pack < packs) weight[k] = Weights<W, P::kCount>::of(a.weight, pack);
    }
    float squares = 0.0f;
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      s[k].forget();
      squares += squares_of(s[k]);
    }
    const float invvar = inverse_rms(row_sum(squares), a.shape);
    if (a.invvar && threadIdx.x == 0) a.invvar[row] = invvar;
    P* y = reinterpret_cast<P*>(static_cast<T*>(a.y) + row * a.y_stride);
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      const int pack = threadIdx.x + k * blockDim.x;
      s[k].forget();
      if (pack >= packs) continue;
      if (!kEarly) weight[k] = Weights<W, P::kCount>::of(a.weight, pack);
      store(y + pack, normed<T, W>(s[k], invvar, weight[k], llama));
    }
  }
}

// Two reads of the row: any length, any alignment (kVector: rows aligned to 16 bytes). What each thread reads the second time
// it has itself read, or written to `sum`, the first time.
template <class T, class W, bool kVector>
__global__ void __launch_bounds__(1024) forward_in_two_reads(const pllm_rms_norm_forward a) {
  using P = Pack<T, kVector>;
  __shared__ float buffers[2 * kWarp];
  RowSum row_sum = {buffers};
  const int packs = static_cast<int>(a.shape.hidden / P::kCount);
  const bool llama = a.shape.rounding == PLLM_ROUND_LLAMA;

  for (int64_t row = blockIdx.x; row < a.shape.rows; row += gridDim.x) {
    const P* s = reinterpret_cast<const P*>(static_cast<const T*>(a.x) + row * a.x_stride);
    float squares = 0.0f;
    if (a.residual) {
      const P* residual = reinterpret_cast<const P*>(static_cast<const T*>(a.residual) + row * a.residual_stride);
      P* sum = reinterpret_cast<P*>(static_cast<T*>(a.sum) + row * a.sum_stride);
      for (int pack = threadIdx.x; pack < packs; pack += blockDim.x) {
        const P value = add(load(s + pack), load(residual + pack));
        store(sum + pack, value);
        squares += squares_of(value);
      }
      s = sum;
    } else {
#pragma unroll 4
      for (int pack = threadIdx.x; pack < packs; pack += blockDim.x) squares += squares_of(load(s + pack));
    }
    const float invvar = inverse_rms(row_sum(squares), a.shape);
    if (a.invvar && threadIdx.x == 0) a.invvar[row] = invvar;
    P* y = reinterpret_cast<P*>(static_cast<T*>(a.y) + row * a.y_stride);
    for (int pack = threadIdx.x; pack < packs; pack += blockDim.x) {
      store(y + pack, normed<T, W>(load(s + pack), invvar, Weights<W, P::kCount>::of(a.weight, pack), llama));
    }
  }
}

}  // namespace pllm

#endif  // PLLM_RMS_NORM_FORWARD_CUH_
