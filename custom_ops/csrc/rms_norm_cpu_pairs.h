// Thirty-two bf16 in two vectors of the instruction set at hand: those at even places, and those at odd places. Widening them is then a
// shift or a mask where neighbours in one vector need a permutation, and one store writes a whole cache line.
//
// Each rms_norm_cpu_<isa>.cpp includes this (through rms_norm_cpu_rows.h) after it has defined `Lanes` and, for Bfloat and for float,
//   unzip(p, &even, &odd)           even = p[0], p[2], ...  odd = p[1], p[3], ...
//   zip(even, odd, p)               the other way
//   zip_stream(even, odd, p)        the same for Bfloat, bypassing the caches
// No include guard and no includes, as in rms_norm_cpu_rows.h.

namespace pllm {
namespace {

struct Pairs {
  static constexpr int64_t kCount = 2 * Lanes::kCount;
  static constexpr bool kStreams = Lanes::kStreams;
  Lanes even, odd;

  static PLLM_INLINE Pairs all(float value) { return {Lanes::all(value), Lanes::all(value)}; }
  template <class T>
  static PLLM_INLINE Pairs load(const T* p) {
    Pairs r;
    unzip(p, &r.even, &r.odd);
    return r;
  }
  template <class T>  // through a buffer: once per row
  static Pairs load(const T* p, int64_t n) {
    T buffer[kCount] = {};
    std::memcpy(buffer, p, static_cast<size_t>(n) * sizeof(T));
    return load(buffer);
  }
  template <class T>
  PLLM_INLINE void store(T* p) const {
    zip(even, odd, p);
  }
  template <class T>
  void store(T* p, int64_t n) const {
    T buffer[kCount];
    store(buffer);
    std::memcpy(p, buffer, static_cast<size_t>(n) * sizeof(T));
  }
  template <class T>
  PLLM_INLINE void stream(T* p) const {
    zip_stream(even, odd, p);
  }
  static void fence() { Lanes::fence(); }

  // Partial sums stay apart as they are until the last of them is written: nobody else reads them.
  static PLLM_INLINE Pairs load_sums(const float* p) { return {Lanes::load(p), Lanes::load(p + Lanes::kCount)}; }
  PLLM_INLINE void store_sums(float* p) const {
    even.store(p);
    odd.store(p + Lanes::kCount);
  }

  template <class T>
  PLLM_INLINE Pairs rounded() const {
    return {even.template rounded<T>(), odd.template rounded<T>()};
  }
  PLLM_INLINE float sum() const { return (even + odd).sum(); }
};

PLLM_INLINE Pairs operator+(const Pairs& a, const Pairs& b) { return {a.even + b.even, a.odd + b.odd}; }
PLLM_INLINE Pairs operator-(const Pairs& a, const Pairs& b) { return {a.even - b.even, a.odd - b.odd}; }
PLLM_INLINE Pairs operator*(const Pairs& a, const Pairs& b) { return {a.even * b.even, a.odd * b.odd}; }

}  // namespace
}  // namespace pllm
