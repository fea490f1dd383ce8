// What RMSNorm's CUDA kernels are made of: 16 bytes of a row as floats, sums over the threads of a row, copies in the background.
#ifndef PLLM_RMS_NORM_DEVICE_CUH_
#define PLLM_RMS_NORM_DEVICE_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace pllm {

constexpr int kWarp = 32;

__device__ inline float widen(float value) { return value; }
__device__ inline float widen(__half value) { return __half2float(value); }
__device__ inline float widen(__nv_bfloat16 value) { return __bfloat162float(value); }

// Round to nearest, ties to even.
__device__ inline void narrow(float value, float* out) { *out = value; }
__device__ inline void narrow(float value, __half* out) { *out = __float2half_rn(value); }
__device__ inline void narrow(float value, __nv_bfloat16* out) { *out = __float2bfloat16_rn(value); }

template <class T>
__device__ inline float rounded(float value) {
  T t;
  narrow(value, &t);
  return widen(t);
}

// Two 16-bit elements in a register, the first one in the lower half; or one float.
__device__ inline void unpack(uint32_t word, float* out, float) { out[0] = __uint_as_float(word); }
__device__ inline void unpack(uint32_t word, float* out, __nv_bfloat16) {
  out[0] = __uint_as_float(word << 16);
  out[1] = __uint_as_float(word & 0xffff0000u);
}
__device__ inline void unpack(uint32_t word, float* out, __half) {
  const float2 both = __half22float2(*reinterpret_cast<const __half2*>(&word));
  out[0] = both.x;
  out[1] = both.y;
}
__device__ inline uint32_t pack(const float* in, float) { return __float_as_uint(in[0]); }
__device__ inline uint32_t pack(const float* in, __nv_bfloat16) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(in[0], in[1]);
  return *reinterpret_cast<const uint32_t*>(&both);
}
__device__ inline uint32_t pack(const float* in, __half) {
  const __half2 both = __floats2half2_rn(in[0], in[1]);
  return *reinterpret_cast<const uint32_t*>(&both);
}

// kCount elements of a row that are loaded and stored at once: 16 bytes, or one element where rows are not aligned to that.
// Plain loads, not the read-only path: an output may be the same tensor as an input.
template <class T, bool kVector>
struct Pack;

template <class T>
struct alignas(16) Pack<T, true> {
  static constexpr int kPerWord = 4 / sizeof(T), kCount = 4 * kPerWord;
  uint4 words;

  __device__ void unpack(float (&out)[kCount]) const {
    pllm::unpack(words.x, out, T());
    pllm::unpack(words.y, out + kPerWord, T());
    pllm::unpack(words.z, out + 2 * kPerWord, T());
    pllm::unpack(words.w, out + 3 * kPerWord, T());
  }
  __device__ void pack(const float (&in)[kCount]) {
    words.x = pllm::pack(in, T());
    words.y = pllm::pack(in + kPerWord, T());
    words.z = pllm::pack(in + 2 * kPerWord, T());
    words.w = pllm::pack(in + 3 * kPerWord, T());
  }
  // Makes the compiler forget that it has seen these words as floats: else it keeps the floats, which are twice the registers.
  __device__ void forget() { asm volatile("" : "+r"(words.x), "+r"(words.y), "+r"(words.z), "+r"(words.w)); }
};

template <class T>
struct Pack<T, false> {
  static constexpr int kCount = 1;
  T element;

  __device__ void unpack(float (&out)[1]) const { out[0] = widen(element); }
  __device__ void pack(const float (&in)[1]) { narrow(in[0], &element); }
  __device__ void forget() {}
};

template <class T, bool kVector>
__device__ inline Pack<T, kVector> load(const Pack<T, kVector>* p) {
  return *p;
}
// The read-only path, for what no output may be: the compiler need not keep such a load behind the stores that come before it.
template <class T, bool kVector>
__device__ inline Pack<T, kVector> load_read_only(const Pack<T, kVector>* p) {
  using Scalar = typename std::conditional<sizeof(T) == 4, uint32_t, uint16_t>::type;
  union {
    typename std::conditional<kVector, uint4, Scalar>::type word;
    Pack<T, kVector> pack;
  } both = {__ldg(reinterpret_cast<const decltype(both.word)*>(p))};
  return both.pack;
}
template <class T, bool kVector>
__device__ inline void store(Pack<T, kVector>* p, const Pack<T, kVector>& value) {
  *p = value;
}

// The weights of one pack of x. Where weights are fp32 and x is not, they are two quadruples.
template <class W, int kCount>
struct Weights {
  static constexpr bool kVector = kCount > 1;
  static constexpr int kPacks = kCount / Pack<W, kVector>::kCount;
  Pack<W, kVector> packs[kPacks];

  __device__ static Weights of(const void* weight, int64_t pack) {
    Weights made;
    const Pack<W, kVector>* p = static_cast<const Pack<W, kVector>*>(weight) + pack * kPacks;
#pragma unroll
    for (int i = 0; i < kPacks; ++i) made.packs[i] = load_read_only(p + i);
    return made;
  }
  __device__ void forget() {
#pragma unroll
    for (int i = 0; i < kPacks; ++i) packs[i].forget();
  }
  __device__ void unpack(float (&out)[kCount]) const {
    constexpr int kEach = Pack<W, kVector>::kCount;
#pragma unroll
    for (int i = 0; i < kPacks; ++i) packs[i].unpack(*reinterpret_cast<float(*)[kEach]>(out + i * kEach));
  }
};

// ---- Sums. In a butterfly every lane adds the same pairs, so all get the same bits, and the same ones each time.

__device__ inline float warp_sum(float value) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
  return value;
}

// The sum over the threads of one row (blockDim.x of them, whole warps), for all of them. With two buffers that take turns one
// barrier per sum is enough: nobody can be two sums ahead.
struct RowSum {
  float* buffers;  // shared, [2, 32]
  int turn = 0;

  __device__ float operator()(float value) {
    value = warp_sum(value);
    if (blockDim.x == kWarp) return value;
    float* buffer = buffers + turn * kWarp;
    turn ^= 1;
    const int lane = threadIdx.x % kWarp;
    if (lane == 0) buffer[threadIdx.x / kWarp] = value;
    __syncthreads();
    return warp_sum(lane < blockDim.x / kWarp ? buffer[lane] : 0.0f);
  }
};

// ---- Copies from global to shared memory that go on in the background (sm_80 and later; before that they are plain copies).

__device__ inline void copy_16(void* shared, const void* global) {
#if __CUDA_ARCH__ >= 800
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
#else
  *static_cast<uint4*>(shared) = *static_cast<const uint4*>(global);
#endif
}

// Ends a group of copies.
__device__ inline void copies_end() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits for this thread's copies, but for the last `kGroups` groups.
template <int kGroups>
__device__ inline void copies_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
#endif
}

}  // namespace pllm

#endif  // PLLM_RMS_NORM_DEVICE_CUH_
