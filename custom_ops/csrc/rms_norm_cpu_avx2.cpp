// RMSNorm's rows with AVX2 and F16C (Haswell, Zen and later).
#include "rms_norm_cpu_table.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "rms_norm_cpu_half.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,f16c")
#endif

namespace pllm {
namespace {

// Eight 16-bit numbers and eight floats, either way.
inline __m256 widen(Bfloat, __m128i bits) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16)); }
inline __m256 widen(Half, __m128i bits) { return _mm256_cvtph_ps(bits); }

// The upper half of each lane is the bf16 nearest to it.
inline __m256i bfloat_bits(__m256 v) {
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  return _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q)));
}

// Sixteen floats in two registers.
struct Lanes {
  static constexpr int64_t kCount = 16;
  static constexpr bool kStreams = true;
  __m256 v, w;

  static Lanes all(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
  static Lanes load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  template <class T>
  static Lanes load(const T* p) {
    const __m128i* q = reinterpret_cast<const __m128i*>(p);
    return {widen(T(), _mm_loadu_si128(q)), widen(T(), _mm_loadu_si128(q + 1))};
  }
  template <class T>  // through a buffer: AVX2 has no masks for 16 bits, and it is once per row
  static Lanes load(const T* p, int64_t n) {
    T buffer[kCount] = {};
    std::memcpy(buffer, p, static_cast<size_t>(n) * sizeof(T));
    return load(buffer);
  }

  __m256i narrow(Half) const {
    return _mm256_set_m128i(_mm256_cvtps_ph(w, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
                            _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  __m256i narrow(Bfloat) const {
    const __m256i packed = _mm256_packus_epi32(_mm256_srli_epi32(bfloat_bits(v), 16), _mm256_srli_epi32(bfloat_bits(w), 16));
    return _mm256_permute4x64_epi64(packed, 0xd8);  // packing interleaves 128-bit halves
  }

  void store(float* p) const {
    _mm256_storeu_ps(p, v);
    _mm256_storeu_ps(p + 8, w);
  }
  void stream(float* p) const {
    _mm256_stream_ps(p, v);
    _mm256_stream_ps(p + 8, w);
  }
  template <class T>
  void store(T* p) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(T()));
  }
  template <class T>
  void store(T* p, int64_t n) const {
    T buffer[kCount];
    store(buffer);
    std::memcpy(p, buffer, static_cast<size_t>(n) * sizeof(T));
  }
  template <class T>
  void stream(T* p) const {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), narrow(T()));
  }
  static void fence() { _mm_sfence(); }

  template <class T>
  Lanes rounded() const {
    return round_to(T());
  }
  Lanes round_to(float) const { return *this; }
  Lanes round_to(Half) const {
    return {_mm256_cvtph_ps(_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)),
            _mm256_cvtph_ps(_mm256_cvtps_ph(w, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC))};
  }
  Lanes round_to(Bfloat) const {
    const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
    return {_mm256_castsi256_ps(_mm256_and_si256(bfloat_bits(v), upper)),
            _mm256_castsi256_ps(_mm256_and_si256(bfloat_bits(w), upper))};
  }

  float sum() const {
    const __m256 eight = _mm256_add_ps(v, w);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
  }
};

// Outside of the class: GCC forgets the instruction set in friends that are defined inside.
inline Lanes operator+(const Lanes& a, const Lanes& b) { return {_mm256_add_ps(a.v, b.v), _mm256_add_ps(a.w, b.w)}; }
inline Lanes operator-(const Lanes& a, const Lanes& b) { return {_mm256_sub_ps(a.v, b.v), _mm256_sub_ps(a.w, b.w)}; }
inline Lanes operator*(const Lanes& a, const Lanes& b) { return {_mm256_mul_ps(a.v, b.v), _mm256_mul_ps(a.w, b.w)}; }

}  // namespace
}  // namespace pllm

// Left to itself the compiler calls what is used twice, and then keeps vectors in memory.
#define PLLM_INLINE inline __attribute__((always_inline))
#include "rms_norm_cpu_rows.h"

namespace pllm {
const CpuKernels* avx2_kernels() { return kernels_of<Lanes>(); }
}  // namespace pllm

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#else

namespace pllm {
const CpuKernels* avx2_kernels() { return nullptr; }
}  // namespace pllm

#endif
