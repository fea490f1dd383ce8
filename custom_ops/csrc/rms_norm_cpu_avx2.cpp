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

// Left to itself the compiler calls what is used twice, and then keeps vectors in memory.
#define PLLM_INLINE inline __attribute__((always_inline))

namespace pllm {
namespace {

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
  static Lanes load(const Half* p) {
    const __m128i* q = reinterpret_cast<const __m128i*>(p);
    return {_mm256_cvtph_ps(_mm_loadu_si128(q)), _mm256_cvtph_ps(_mm_loadu_si128(q + 1))};
  }
  template <class T>  // through a buffer: AVX2 has no masks for 16 bits, and it is once per row
  static Lanes load(const T* p, int64_t n) {
    T buffer[kCount] = {};
    std::memcpy(buffer, p, static_cast<size_t>(n) * sizeof(T));
    return load(buffer);
  }

  static Lanes load_sums(const float* p) { return load(p); }

  __m256i halves() const {
    return _mm256_set_m128i(_mm256_cvtps_ph(w, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
                            _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }

  void store(float* p) const {
    _mm256_storeu_ps(p, v);
    _mm256_storeu_ps(p + 8, w);
  }
  void stream(float* p) const {
    _mm256_stream_ps(p, v);
    _mm256_stream_ps(p + 8, w);
  }
  void store(Half* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), halves()); }
  template <class T>
  void store(T* p, int64_t n) const {
    T buffer[kCount];
    store(buffer);
    std::memcpy(p, buffer, static_cast<size_t>(n) * sizeof(T));
  }
  void stream(Half* p) const { _mm256_stream_si256(reinterpret_cast<__m256i*>(p), halves()); }
  void store_sums(float* p) const { store(p); }
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

// What Pairs asks for, eight pairs at a time.
inline __m256 even_of(__m256i bits) { return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16)); }
inline __m256 odd_of(__m256i bits) {
  return _mm256_castsi256_ps(_mm256_and_si256(bits, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
}
PLLM_INLINE void unzip(const Bfloat* p, Lanes* even, Lanes* odd) {
  const __m256i* q = reinterpret_cast<const __m256i*>(p);
  const __m256i low = _mm256_loadu_si256(q), high = _mm256_loadu_si256(q + 1);
  *even = {even_of(low), even_of(high)};
  *odd = {odd_of(low), odd_of(high)};
}
inline __m256 in_order(__m256 v) { return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(v), 0xd8)); }  // shuffles keep to 128-bit halves
PLLM_INLINE void unzip(const float* p, Lanes* even, Lanes* odd) {
  const __m256 a = _mm256_loadu_ps(p), b = _mm256_loadu_ps(p + 8), c = _mm256_loadu_ps(p + 16), d = _mm256_loadu_ps(p + 24);
  *even = {in_order(_mm256_shuffle_ps(a, b, 0x88)), in_order(_mm256_shuffle_ps(c, d, 0x88))};
  *odd = {in_order(_mm256_shuffle_ps(a, b, 0xdd)), in_order(_mm256_shuffle_ps(c, d, 0xdd))};
}
inline __m256i zipped(__m256 even, __m256 odd) {
  return _mm256_blend_epi16(_mm256_srli_epi32(bfloat_bits(even), 16), bfloat_bits(odd), 0xaa);
}
PLLM_INLINE void zip(const Lanes& even, const Lanes& odd, Bfloat* p) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), zipped(even.v, odd.v));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p) + 1, zipped(even.w, odd.w));
}
PLLM_INLINE void zip_stream(const Lanes& even, const Lanes& odd, Bfloat* p) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), zipped(even.v, odd.v));
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p) + 1, zipped(even.w, odd.w));
}
PLLM_INLINE void zip(const Lanes& even, const Lanes& odd, float* p) {
  const auto zip_eight = [](__m256 e, __m256 o, float* q) {
    const __m256 low = _mm256_unpacklo_ps(e, o), high = _mm256_unpackhi_ps(e, o);
    _mm256_storeu_ps(q, _mm256_permute2f128_ps(low, high, 0x20));
    _mm256_storeu_ps(q + 8, _mm256_permute2f128_ps(low, high, 0x31));
  };
  zip_eight(even.v, odd.v, p);
  zip_eight(even.w, odd.w, p + 16);
}

}  // namespace
}  // namespace pllm

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
