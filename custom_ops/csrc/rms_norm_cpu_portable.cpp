// RMSNorm's rows in plain C++: arm64, x86-64 without AVX2, and what the other instruction sets are compared with.
#include <cmath>
#include <cstdint>
#include <cstring>

#include "rms_norm_cpu_half.h"
#include "rms_norm_cpu_table.h"

#define PLLM_INLINE inline  // forced, it takes the compiler minutes: a vector is a loop here

namespace pllm {
namespace {

// Sixteen floats. Loops of constant length, so that compilers turn them into whatever vectors the target has.
struct Lanes {
  static constexpr int64_t kCount = 16;
  static constexpr bool kStreams = false;  // no stores that bypass the caches in plain C++
  float v[kCount];

  static Lanes all(float value) {
    Lanes r;
    for (float& lane : r.v) lane = value;
    return r;
  }
  template <class T>
  static Lanes load(const T* p) {
    Lanes r;
    for (int i = 0; i < kCount; ++i) r.v[i] = to_float(p[i]);
    return r;
  }
  template <class T>  // the first `n` lanes; the others are zero
  static Lanes load(const T* p, int64_t n) {
    Lanes r = all(0.0f);
    for (int64_t i = 0; i < n; ++i) r.v[i] = to_float(p[i]);
    return r;
  }
  template <class T>
  void store(T* p) const {
    for (int i = 0; i < kCount; ++i) from_float(v[i], p + i);
  }
  template <class T>
  void store(T* p, int64_t n) const {
    for (int64_t i = 0; i < n; ++i) from_float(v[i], p + i);
  }
  static void fence() {}  // nothing to wait for
  static Lanes load_sums(const float* p) { return load(p); }
  void store_sums(float* p) const { store(p); }
  template <class T>
  Lanes rounded() const {
    Lanes r;
    T t;
    for (int i = 0; i < kCount; ++i) {
      from_float(v[i], &t);
      r.v[i] = to_float(t);
    }
    return r;
  }
  // In halves, as vectors do it: the order is the same for every instruction set.
  float sum() const {
    Lanes r = *this;
    for (int half = 8; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) r.v[i] += r.v[i + half];
    }
    return r.v[0];
  }
  friend Lanes operator+(const Lanes& a, const Lanes& b) {
    Lanes r;
    for (int i = 0; i < kCount; ++i) r.v[i] = a.v[i] + b.v[i];
    return r;
  }
  friend Lanes operator-(const Lanes& a, const Lanes& b) {
    Lanes r;
    for (int i = 0; i < kCount; ++i) r.v[i] = a.v[i] - b.v[i];
    return r;
  }
  friend Lanes operator*(const Lanes& a, const Lanes& b) {
    Lanes r;
    for (int i = 0; i < kCount; ++i) r.v[i] = a.v[i] * b.v[i];
    return r;
  }
};

// What Pairs asks for.
template <class T>
void unzip(const T* p, Lanes* even, Lanes* odd) {
  for (int i = 0; i < Lanes::kCount; ++i) {
    even->v[i] = to_float(p[2 * i]);
    odd->v[i] = to_float(p[2 * i + 1]);
  }
}
template <class T>
void zip(const Lanes& even, const Lanes& odd, T* p) {
  for (int i = 0; i < Lanes::kCount; ++i) {
    from_float(even.v[i], p + 2 * i);
    from_float(odd.v[i], p + 2 * i + 1);
  }
}

}  // namespace
}  // namespace pllm

#include "rms_norm_cpu_rows.h"

namespace pllm {
const CpuKernels* portable_kernels() { return kernels_of<Lanes>(); }
}  // namespace pllm
