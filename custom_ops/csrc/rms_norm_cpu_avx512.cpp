// RMSNorm's rows with AVX-512 (F, BW, VL: Skylake-SP, Zen 4 and later).
#include "rms_norm_cpu_table.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "rms_norm_cpu_half.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl")
// GCC's own header leaves an operand undefined on purpose and then warns of it (bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

// Left to itself the compiler calls what is used twice, and then keeps vectors in memory.
#define PLLM_INLINE inline __attribute__((always_inline))

namespace pllm {
namespace {

// Sixteen floats in one register.
struct Lanes {
  static constexpr int64_t kCount = 16;
  static constexpr bool kStreams = true;
  __m512 v;

  static __mmask16 first(int64_t n) { return static_cast<__mmask16>((1u << n) - 1u); }
  static Lanes all(float value) { return {_mm512_set1_ps(value)}; }
  static Lanes load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static Lanes load(const float* p, int64_t n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
  static Lanes load(const Half* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}; }
  static Lanes load(const Half* p, int64_t n) { return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p))}; }
  static Lanes load_sums(const float* p) { return load(p); }

  __m256i halves() const { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  // The upper half of each lane is the bf16 nearest to it. Not vcvtneps2bf16, which flushes subnormal numbers to zero.
  __m512i bfloat_bits() const {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i up = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff));
    const __m512i rounded = _mm512_mask_add_epi32(up, _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000)), up, _mm512_set1_epi32(1));
    return _mm512_mask_or_epi32(rounded, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), bits, _mm512_set1_epi32(0x400000));
  }

  void store(float* p) const { _mm512_storeu_ps(p, v); }
  void store(float* p, int64_t n) const { _mm512_mask_storeu_ps(p, first(n), v); }
  void stream(float* p) const { _mm512_stream_ps(p, v); }
  void store(Half* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), halves()); }
  void store(Half* p, int64_t n) const { _mm256_mask_storeu_epi16(p, first(n), halves()); }
  void stream(Half* p) const { _mm256_stream_si256(reinterpret_cast<__m256i*>(p), halves()); }
  void store_sums(float* p) const { store(p); }
  static void fence() { _mm_sfence(); }

  template <class T>
  Lanes rounded() const {
    return round_to(T());
  }
  Lanes round_to(float) const { return *this; }
  Lanes round_to(Half) const { return {_mm512_cvtph_ps(halves())}; }
  Lanes round_to(Bfloat) const {
    return {_mm512_castsi512_ps(_mm512_and_si512(bfloat_bits(), _mm512_set1_epi32(static_cast<int>(0xffff0000u))))};
  }

  float sum() const {
    const __m256 low = _mm512_castps512_ps256(v);
    const __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v), 1));
    const __m256 eight = _mm256_add_ps(low, high);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
  }
};

// Outside of the class: GCC forgets the instruction set in friends that are defined inside.
inline Lanes operator+(const Lanes& a, const Lanes& b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Lanes operator-(const Lanes& a, const Lanes& b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Lanes operator*(const Lanes& a, const Lanes& b) { return {_mm512_mul_ps(a.v, b.v)}; }

// What Pairs asks for.
PLLM_INLINE void unzip(const Bfloat* p, Lanes* even, Lanes* odd) {
  const __m512i bits = _mm512_loadu_si512(p);
  even->v = _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
  odd->v = _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}
PLLM_INLINE void unzip(const float* p, Lanes* even, Lanes* odd) {
  const __m512 low = _mm512_loadu_ps(p), high = _mm512_loadu_ps(p + 16);
  const __m512i places = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  even->v = _mm512_permutex2var_ps(low, places, high);
  odd->v = _mm512_permutex2var_ps(low, _mm512_add_epi32(places, _mm512_set1_epi32(1)), high);
}
PLLM_INLINE __m512i zipped(const Lanes& even, const Lanes& odd) {
  return _mm512_mask_blend_epi16(0xaaaaaaaau, _mm512_srli_epi32(even.bfloat_bits(), 16), odd.bfloat_bits());
}
PLLM_INLINE void zip(const Lanes& even, const Lanes& odd, Bfloat* p) { _mm512_storeu_si512(p, zipped(even, odd)); }
PLLM_INLINE void zip_stream(const Lanes& even, const Lanes& odd, Bfloat* p) {
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), zipped(even, odd));
}
PLLM_INLINE void zip(const Lanes& even, const Lanes& odd, float* p) {
  const __m512i places = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  _mm512_storeu_ps(p, _mm512_permutex2var_ps(even.v, places, odd.v));
  _mm512_storeu_ps(p + 16, _mm512_permutex2var_ps(even.v, _mm512_add_epi32(places, _mm512_set1_epi32(8)), odd.v));
}

}  // namespace
}  // namespace pllm

#include "rms_norm_cpu_rows.h"

namespace pllm {
const CpuKernels* avx512_kernels() { return kernels_of<Lanes>(); }
}  // namespace pllm

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#else

namespace pllm {
const CpuKernels* avx512_kernels() { return nullptr; }
}  // namespace pllm

#endif
