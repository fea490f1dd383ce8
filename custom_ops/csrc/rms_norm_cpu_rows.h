// RMSNorm of one row after the other in one thread, written once over a vector of floats, `L`: `Lanes`, sixteen of them, or `Pairs`, which
// is two of those, for bf16. Each rms_norm_cpu_<isa>.cpp includes this after it has told the compiler its instruction set, so every
// name here ends up once per instruction set.
//
// A row is read twice: first its sum, then the elements, from the cache. One loop does the second of a row and the first of the next,
// so that memory always has reads and writes to do. No fused multiply-add: with it the bits would depend on the processor, and memory
// is what these loops wait for.
//
// No include guard, and no includes of what is compiled alone: the includer brings PLLM_INLINE, <cmath>, <cstdint>, <cstring>,
// rms_norm_cpu_half.h and rms_norm_cpu_table.h, since standard headers must not be compiled for the instruction set.
#include "rms_norm_cpu_pairs.h"

namespace pllm {
namespace {

// Processors fetch ahead by themselves, but only inside of a page and not for this many streams at once. A row is read twice and then
// never again: AMD's are fastest where that is said (`kOnce`; by 5 to 10%). Intel's then keep a line in no cache but the first, which is too
// small for a row, and the second reading goes to memory: forward and backward take two to four times as long.
template <bool kOnce>
PLLM_INLINE void prefetch(const void* p) {
  constexpr int64_t kAhead = kOnce ? 4096 : 8192;  // bytes
  constexpr int kReading = 0, kNotForLong = 0, kSecondCache = 2;
  __builtin_prefetch(static_cast<const char*>(p) + kAhead, kReading, kOnce ? kNotForLong : kSecondCache);
}

struct Nothing {
  PLLM_INLINE void operator()(int64_t) const {}
  PLLM_INLINE void operator()(int64_t, int64_t) const {}
};

// Sum of term(0) .. term(hidden - 1): running sums in sixty-four lanes per block, blocks in double. `also` is called for the same
// elements on the way, before term, which may overwrite what it reads. Both are called with an index for a whole vector, and with a number of elements for the end of a row.
template <class L, class Term, class Also>
PLLM_INLINE double sum_of(int64_t hidden, const Term& term, const Also& also) {
  constexpr int64_t n = L::kCount, kSums = 64 / n;
  double total = 0;
  for (int64_t begin = 0; begin < hidden; begin += kBlockElements) {
    const int64_t end = begin + kBlockElements < hidden ? begin + kBlockElements : hidden;
    L sums[kSums];
    for (L& sum : sums) sum = L::all(0.0f);
    int64_t i = begin;
    for (; i + 64 <= end; i += 64) {
      for (int64_t k = 0; k < kSums; ++k) also(i + k * n);
      for (int64_t k = 0; k < kSums; ++k) sums[k] = sums[k] + term(i + k * n);
    }
    for (; i + n <= end; i += n) {
      also(i);
      sums[0] = sums[0] + term(i);
    }
    if (i < end) {
      also(i, end - i);
      sums[1] = sums[1] + term(i, end - i);
    }
    for (int64_t k = kSums / 2; k > 0; k /= 2) {
      for (int64_t j = 0; j < k; ++j) sums[j] = sums[j] + sums[j + k];
    }
    total += static_cast<double>(sums[0].sum());
  }
  return total;
}

// do_this(0) .. do_this(hidden - 1).
template <class L, class This>
PLLM_INLINE void each_of(int64_t hidden, const This& do_this) {
  int64_t i = 0;
  for (; i + L::kCount <= hidden; i += L::kCount) do_this(i);
  if (i < hidden) do_this(i, hidden - i);
}

template <bool kStream, class L, class T>
PLLM_INLINE void put(const L& lanes, T* p) {
  if constexpr (kStream) {
    lanes.stream(p);
  } else {
    lanes.store(p);
  }
}

// ---- Forward. T: the type of elements, W: of weights.

template <class L, class T, bool kResidual, bool kOnce>
struct Square {  // term of sum(s * s); s: x, or x + residual rounded to x's type, which is left in `row` for the second reading
  const T* x;
  const T* residual;
  T* row;

  Square(const pllm_rms_norm_forward& a, int64_t r, void* spare_row)
      : x(static_cast<const T*>(a.x) + r * a.x_stride),
        residual(kResidual ? static_cast<const T*>(a.residual) + r * a.residual_stride : nullptr),
        row(static_cast<T*>(spare_row)) {}
  PLLM_INLINE L operator()(int64_t i) const {
    prefetch<kOnce>(x + i);
    L s = L::load(x + i);
    if (kResidual) {
      prefetch<kOnce>(residual + i);
      (s + L::load(residual + i)).store(row + i);
      s = L::load(row + i);
    }
    return s * s;
  }
  PLLM_INLINE L operator()(int64_t i, int64_t count) const {
    L s = L::load(x + i, count);
    if (kResidual) {
      (s + L::load(residual + i, count)).store(row + i, count);
      s = L::load(row + i, count);
    }
    return s * s;
  }
};

template <class L, class T, class W, bool kResidual, bool kLlama, bool kStream>
struct Scale {  // writes y, and x + residual
  const T* row;
  const W* weight;
  T* sum;
  T* y;
  L invvar;

  Scale(const pllm_rms_norm_forward& a, int64_t r, const void* spare_row, float invvar_r)
      : row(kResidual ? static_cast<const T*>(spare_row) : static_cast<const T*>(a.x) + r * a.x_stride),
        weight(static_cast<const W*>(a.weight)),
        sum(kResidual ? static_cast<T*>(a.sum) + r * a.sum_stride : nullptr),
        y(static_cast<T*>(a.y) + r * a.y_stride),
        invvar(L::all(invvar_r)) {}
  PLLM_INLINE L normed(const L& s) const {
    const L n = s * invvar;
    return kLlama ? n.template rounded<T>() : n;
  }
  PLLM_INLINE void operator()(int64_t i) const {
    const L s = L::load(row + i);
    if (kResidual) put<kStream>(s, sum + i);
    put<kStream>(normed(s) * L::load(weight + i), y + i);
  }
  PLLM_INLINE void operator()(int64_t i, int64_t count) const {
    const L s = L::load(row + i, count);
    if (kResidual) s.store(sum + i, count);
    (normed(s) * L::load(weight + i, count)).store(y + i, count);
  }
};

template <class L, class T, class W, bool kResidual, bool kLlama, bool kStream, bool kOnce>
void forward_rows(const pllm_rms_norm_forward& a, int64_t begin, int64_t end, void* spare_row) {
  const int64_t hidden = a.shape.hidden;
  double squares = begin < end ? sum_of<L>(hidden, Square<L, T, kResidual, kOnce>(a, begin, spare_row), Nothing()) : 0;
  for (int64_t r = begin; r < end; ++r) {
    const float invvar = static_cast<float>(1.0 / std::sqrt(squares / static_cast<double>(hidden) + a.shape.epsilon));
    if (a.invvar) a.invvar[r] = invvar;
    const Scale<L, T, W, kResidual, kLlama, kStream> scale(a, r, spare_row, invvar);
    if (r + 1 < end) {
      squares = sum_of<L>(hidden, Square<L, T, kResidual, kOnce>(a, r + 1, spare_row), scale);
    } else {
      each_of<L>(hidden, scale);
    }
  }
  if constexpr (kStream) L::fence();
}

// ---- Backward.

template <class L, class T, class W, bool kOnce>
struct Product {  // term of sum((dy * weight) * (x * invvar)), which overflows only where the formula does
  const T* dy;
  const T* x;
  const W* weight;
  L invvar;

  Product(const pllm_rms_norm_backward& a, int64_t r)
      : dy(static_cast<const T*>(a.dy) + r * a.dy_stride),
        x(static_cast<const T*>(a.x) + r * a.x_stride),
        weight(static_cast<const W*>(a.weight)),
        invvar(L::all(a.invvar[r])) {}
  PLLM_INLINE L operator()(int64_t i) const {
    prefetch<kOnce>(dy + i);
    prefetch<kOnce>(x + i);
    return (L::load(dy + i) * L::load(weight + i)) * (L::load(x + i) * invvar);
  }
  PLLM_INLINE L operator()(int64_t i, int64_t count) const {
    return (L::load(dy + i, count) * L::load(weight + i, count)) * (L::load(x + i, count) * invvar);
  }
};

template <class L, class T, class W, bool kLlama, bool kStream, bool kOnce, bool kDsum>
struct Gradient {  // writes dx, adds to the sums of dweight
  Product<L, T, W, kOnce> row;
  const T* dsum;
  T* dx;
  float* dweight;
  L mean;

  Gradient(const pllm_rms_norm_backward& a, int64_t r, float mean_r, float* dweight_H)
      : row(a, r),
        dsum(kDsum ? static_cast<const T*>(a.dsum) + r * a.dsum_stride : nullptr),
        dx(static_cast<T*>(a.dx) + r * a.dx_stride),
        dweight(dweight_H),
        mean(L::all(mean_r)) {}
  PLLM_INLINE L of_x(const L& dy, const L& n, const L& weight) const { return row.invvar * (dy * weight - n * mean); }
  PLLM_INLINE L of_weight(const L& dy, const L& n) const { return dy * (kLlama ? n.template rounded<T>() : n); }

  PLLM_INLINE void operator()(int64_t i) const {
    const L dy = L::load(row.dy + i), n = L::load(row.x + i) * row.invvar;
    if (dweight) (L::load_sums(dweight + i) + of_weight(dy, n)).store_sums(dweight + i);
    L result = of_x(dy, n, L::load(row.weight + i));
    if (kDsum) {
      prefetch<kOnce>(dsum + i);
      result = result + L::load(dsum + i);
    }
    put<kStream>(result, dx + i);
  }
  PLLM_INLINE void operator()(int64_t i, int64_t count) const {
    const L dy = L::load(row.dy + i, count), n = L::load(row.x + i, count) * row.invvar;
    if (dweight) (L::load_sums(dweight + i) + of_weight(dy, n)).store_sums(dweight + i);  // padded: lanes of no element add zero
    const L result = of_x(dy, n, L::load(row.weight + i, count));
    (kDsum ? result + L::load(dsum + i, count) : result).store(dx + i, count);
  }
};

template <class L, class T, class W, bool kLlama, bool kStream, bool kOnce, bool kDsum>
void backward_rows(const pllm_rms_norm_backward& a, int64_t begin, int64_t end, float* dweight) {
  const int64_t hidden = a.shape.hidden;
  for (int64_t i = 0; dweight && i < padded(hidden); ++i) dweight[i] = 0.0f;
  double products = begin < end ? sum_of<L>(hidden, Product<L, T, W, kOnce>(a, begin), Nothing()) : 0;
  for (int64_t r = begin; r < end; ++r) {
    const float mean = static_cast<float>(products / static_cast<double>(hidden));
    const Gradient<L, T, W, kLlama, kStream, kOnce, kDsum> gradient(a, r, mean, dweight);
    if (r + 1 < end) {
      products = sum_of<L>(hidden, Product<L, T, W, kOnce>(a, r + 1), gradient);
    } else {
      each_of<L>(hidden, gradient);
    }
  }
  if constexpr (kStream) L::fence();
}

template <class L>
void add(float* into, const float* from, int64_t hidden) {
  for (int64_t i = 0; i < padded(hidden); i += L::kCount) (L::load(into + i) + L::load(from + i)).store(into + i);
}

// Sixteen partial sums at a time, so that no running sum has more than a few terms.
template <class L, class W>
void finish_columns(W* dweight, const float* partials, int64_t count, int64_t stride, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i += L::kCount) {
    const int64_t rest = end - i < L::kCount ? end - i : L::kCount;
    L total = L::all(0.0f);
    for (int64_t first = 0; first < count; first += 16) {
      L sum = L::all(0.0f);
      for (int64_t p = first; p < count && p < first + 16; ++p) sum = sum + L::load_sums(partials + p * stride + i);
      total = total + sum;
    }
    total.store(dweight + i, rest);
  }
}

// ---- From the types of arguments to the loops above.

template <class L, class T, class W, bool kResidual, bool kLlama>
void forward_stream(const pllm_rms_norm_forward& a, int64_t begin, int64_t end, bool stream, void* spare_row) {
  if constexpr (L::kStreams) {
    if constexpr (!kLlama) {  // the usual rounding alone, for each variant takes seconds to compile
      if (stream && kReadOnce) return forward_rows<L, T, W, kResidual, kLlama, true, true>(a, begin, end, spare_row);
    }
    if (stream) return forward_rows<L, T, W, kResidual, kLlama, true, false>(a, begin, end, spare_row);
  }
  forward_rows<L, T, W, kResidual, kLlama, false, false>(a, begin, end, spare_row);
}

template <class L, class T, class W>
void forward_typed(const pllm_rms_norm_forward& a, int64_t begin, int64_t end, bool stream, void* spare_row) {
  constexpr bool kHalf = sizeof(T) == 2;  // for fp32 the two roundings are one
  const bool llama = kHalf && a.shape.rounding == PLLM_ROUND_LLAMA;
  if (a.residual) {
    (llama ? forward_stream<L, T, W, true, kHalf> : forward_stream<L, T, W, true, false>)(a, begin, end, stream, spare_row);
  } else {
    (llama ? forward_stream<L, T, W, false, kHalf> : forward_stream<L, T, W, false, false>)(a, begin, end, stream, spare_row);
  }
}

template <class L>
void forward(const pllm_rms_norm_forward& a, int64_t begin, int64_t end, bool stream, void* spare_row) {
  const bool mixed = a.shape.weight_type != a.shape.x_type;
  switch (a.shape.x_type) {
    case PLLM_FLOAT16: return (mixed ? forward_typed<L, Half, float> : forward_typed<L, Half, Half>)(a, begin, end, stream, spare_row);
    case PLLM_BFLOAT16: return (mixed ? forward_typed<Pairs, Bfloat, float> : forward_typed<Pairs, Bfloat, Bfloat>)(a, begin, end, stream, spare_row);
    default: return forward_typed<L, float, float>(a, begin, end, stream, spare_row);
  }
}

template <class L, class T, class W, bool kLlama, bool kStream, bool kOnce>
void backward_wanted(const pllm_rms_norm_backward& a, int64_t begin, int64_t end, float* dweight) {
  (a.dsum ? backward_rows<L, T, W, kLlama, kStream, kOnce, true> : backward_rows<L, T, W, kLlama, kStream, kOnce, false>)(a, begin, end, dweight);
}

template <class L, class T, class W, bool kLlama>
void backward_stream(const pllm_rms_norm_backward& a, int64_t begin, int64_t end, bool stream, float* dweight) {
  if constexpr (L::kStreams) {
    if constexpr (!kLlama) {
      if (stream && kReadOnce) return backward_wanted<L, T, W, kLlama, true, true>(a, begin, end, dweight);
    }
    if (stream) return backward_wanted<L, T, W, kLlama, true, false>(a, begin, end, dweight);
  }
  backward_wanted<L, T, W, kLlama, false, false>(a, begin, end, dweight);
}

template <class L, class T, class W>
void backward_typed(const pllm_rms_norm_backward& a, int64_t begin, int64_t end, bool stream, float* dweight) {
  constexpr bool kHalf = sizeof(T) == 2;
  const bool llama = kHalf && a.shape.rounding == PLLM_ROUND_LLAMA;
  (llama ? backward_stream<L, T, W, kHalf> : backward_stream<L, T, W, false>)(a, begin, end, stream, dweight);
}

template <class L>
void backward(const pllm_rms_norm_backward& a, int64_t begin, int64_t end, bool stream, float* dweight) {
  const bool mixed = a.shape.weight_type != a.shape.x_type;
  switch (a.shape.x_type) {
    case PLLM_FLOAT16:
      return (mixed ? backward_typed<L, Half, float> : backward_typed<L, Half, Half>)(a, begin, end, stream, dweight);
    case PLLM_BFLOAT16:
      return (mixed ? backward_typed<Pairs, Bfloat, float> : backward_typed<Pairs, Bfloat, Bfloat>)(a, begin, end, stream, dweight);
    default: return backward_typed<L, float, float>(a, begin, end, stream, dweight);
  }
}

template <class L>
void finish(const pllm_rms_norm_backward& a, const float* partials, int64_t count, int64_t stride, int64_t begin, int64_t end) {
  const bool pairs = a.shape.x_type == PLLM_BFLOAT16;  // the order of its sums
  switch (a.shape.weight_type) {
    case PLLM_FLOAT16: return finish_columns<L>(static_cast<Half*>(a.dweight), partials, count, stride, begin, end);
    case PLLM_BFLOAT16: return finish_columns<Pairs>(static_cast<Bfloat*>(a.dweight), partials, count, stride, begin, end);
    default: return (pairs ? finish_columns<Pairs, float> : finish_columns<L, float>)(static_cast<float*>(a.dweight), partials, count, stride, begin, end);
  }
}

template <class L>
const CpuKernels* kernels_of() {
  static const CpuKernels kernels = {forward<L>, backward<L>, add<L>, finish<L>};
  return &kernels;
}

}  // namespace
}  // namespace pllm
