// RMSNorm of one row after the other in one thread, written once over a vector of sixteen floats, `L`. Each rms_norm_cpu_<isa>.cpp
// includes this after it has told the compiler its instruction set, so every name here ends up once per instruction set.
//
// A row is read twice, the second time from the cache: first its sum, then the elements. No fused multiply-add: with it the bits
// would depend on the processor, and memory is what these loops wait for.
//
// No include guard and no includes: the includer brings <cmath>, <cstdint>, rms_norm_cpu_half.h and rms_norm_cpu_table.h, since
// standard headers must not be compiled for the instruction set.

namespace pllm {
namespace {

// The row that is normed: x, or x + residual rounded to x's type. T: the type of elements.
template <class L, class T, bool kResidual>
struct Row {
  const T* x;
  const T* residual;

  L at(int64_t i) const {
    const L x_lanes = L::load(x + i);
    if (!kResidual) return x_lanes;
    return (x_lanes + L::load(residual + i)).template rounded<T>();
  }
  L at(int64_t i, int64_t n) const {
    const L x_lanes = L::load(x + i, n);
    if (!kResidual) return x_lanes;
    return (x_lanes + L::load(residual + i, n)).template rounded<T>();
  }
  // Brings in what the next row starts with while this one's results go out, so that memory has reads and writes in flight at once.
  void prefetch(int64_t i, int64_t stride, int64_t residual_stride) const {
    __builtin_prefetch(x + stride + i);
    if (kResidual) __builtin_prefetch(residual + residual_stride + i);
  }
};

template <class Input>
struct Square {  // term of sum(s * s)
  Input row;
  auto operator()(int64_t i) const {
    const auto s = row.at(i);
    return s * s;
  }
  auto operator()(int64_t i, int64_t n) const {
    const auto s = row.at(i, n);
    return s * s;
  }
};

template <class L, class T, class W>
struct Product {  // term of sum((dy * weight) * x)
  const T* dy;
  const W* weight;
  const T* x;
  L operator()(int64_t i) const { return (L::load(dy + i) * L::load(weight + i)) * L::load(x + i); }
  L operator()(int64_t i, int64_t n) const { return (L::load(dy + i, n) * L::load(weight + i, n)) * L::load(x + i, n); }
};

// Sum of term(0) .. term(hidden - 1): four vectors of running sums per block, blocks in double.
template <class L, class Term>
double sum_of(const Term& term, int64_t hidden) {
  constexpr int64_t n = L::kCount;
  double total = 0;
  for (int64_t begin = 0; begin < hidden; begin += kBlockElements) {
    const int64_t end = begin + kBlockElements < hidden ? begin + kBlockElements : hidden;
    L a = L::all(0.0f), b = a, c = a, d = a;
    int64_t i = begin;
    for (; i + 4 * n <= end; i += 4 * n) {
      a = a + term(i);
      b = b + term(i + n);
      c = c + term(i + 2 * n);
      d = d + term(i + 3 * n);
    }
    for (; i + n <= end; i += n) a = a + term(i);
    if (i < end) b = b + term(i, end - i);
    total += static_cast<double>(((a + b) + (c + d)).sum());
  }
  return total;
}

template <bool kStream, class L, class T>
void put(const L& lanes, T* p) {
  if (kStream) {
    lanes.stream(p);
  } else {
    lanes.store(p);
  }
}

template <class L, class T, class W, bool kResidual, bool kLlama, bool kStream>
void forward_rows(const pllm_rms_norm_forward& a, int64_t begin, int64_t end) {
  const int64_t hidden = a.shape.hidden;
  const W* weight = static_cast<const W*>(a.weight);
  for (int64_t r = begin; r < end; ++r) {
    const Row<L, T, kResidual> row = {static_cast<const T*>(a.x) + r * a.x_stride,
                                      kResidual ? static_cast<const T*>(a.residual) + r * a.residual_stride : nullptr};
    T* y = static_cast<T*>(a.y) + r * a.y_stride;
    T* sum = kResidual ? static_cast<T*>(a.sum) + r * a.sum_stride : nullptr;

    const double squares = sum_of<L>(Square<Row<L, T, kResidual>>{row}, hidden);
    const float invvar = static_cast<float>(1.0 / std::sqrt(squares / static_cast<double>(hidden) + a.shape.epsilon));
    if (a.invvar) a.invvar[r] = invvar;

    const L invvar_lanes = L::all(invvar);
    const int64_t next_x = r + 1 < end ? a.x_stride : 0, next_residual = r + 1 < end ? a.residual_stride : 0;
    int64_t i = 0;
    for (; i + L::kCount <= hidden; i += L::kCount) {
      row.prefetch(i, next_x, next_residual);
      const L s = row.at(i);
      if (kResidual) put<kStream>(s, sum + i);
      L n = s * invvar_lanes;
      if (kLlama) n = n.template rounded<T>();
      put<kStream>(n * L::load(weight + i), y + i);
    }
    if (i < hidden) {
      const int64_t rest = hidden - i;
      const L s = row.at(i, rest);
      if (kResidual) s.store(sum + i, rest);
      L n = s * invvar_lanes;
      if (kLlama) n = n.template rounded<T>();
      (n * L::load(weight + i, rest)).store(y + i, rest);
    }
  }
  if (kStream) L::fence();
}

// dx of `n` lanes, and what they add to dweight.
template <class L, class T, bool kLlama>
struct Gradient {
  L invvar, mean;
  L dx, dweight;
  void of(const L& dy, const L& x, const L& weight) {
    const L n = x * invvar;
    dx = invvar * (dy * weight - n * mean);
    dweight = dy * (kLlama ? n.template rounded<T>() : n);
  }
};

template <class L, class T, class W, bool kLlama, bool kStream>
void backward_rows(const pllm_rms_norm_backward& a, int64_t begin, int64_t end, float* dweight) {
  const int64_t hidden = a.shape.hidden;
  const W* weight = static_cast<const W*>(a.weight);
  for (int64_t i = 0; dweight && i < hidden; ++i) dweight[i] = 0.0f;
  for (int64_t r = begin; r < end; ++r) {
    const T* dy = static_cast<const T*>(a.dy) + r * a.dy_stride;
    const T* x = static_cast<const T*>(a.x) + r * a.x_stride;
    const T* dsum = a.dsum ? static_cast<const T*>(a.dsum) + r * a.dsum_stride : nullptr;
    T* dx = static_cast<T*>(a.dx) + r * a.dx_stride;

    const double products = sum_of<L>(Product<L, T, W>{dy, weight, x}, hidden);
    const float mean = static_cast<float>(products * a.invvar[r] / static_cast<double>(hidden));

    Gradient<L, T, kLlama> gradient = {L::all(a.invvar[r]), L::all(mean), {}, {}};
    const int64_t next_dy = r + 1 < end ? a.dy_stride : 0, next_x = r + 1 < end ? a.x_stride : 0;
    int64_t i = 0;
    for (; i + L::kCount <= hidden; i += L::kCount) {
      __builtin_prefetch(dy + next_dy + i);
      __builtin_prefetch(x + next_x + i);
      gradient.of(L::load(dy + i), L::load(x + i), L::load(weight + i));
      if (dweight) (L::load(dweight + i) + gradient.dweight).store(dweight + i);
      put<kStream>(dsum ? gradient.dx + L::load(dsum + i) : gradient.dx, dx + i);
    }
    if (i < hidden) {
      const int64_t rest = hidden - i;
      gradient.of(L::load(dy + i, rest), L::load(x + i, rest), L::load(weight + i, rest));
      if (dweight) (L::load(dweight + i, rest) + gradient.dweight).store(dweight + i, rest);
      (dsum ? gradient.dx + L::load(dsum + i, rest) : gradient.dx).store(dx + i, rest);
    }
  }
  if (kStream) L::fence();
}

template <class L>
void add(float* into, const float* from, int64_t hidden) {
  for (int64_t i = 0; i < hidden; i += L::kCount) {
    const int64_t rest = hidden - i < L::kCount ? hidden - i : L::kCount;
    (L::load(into + i, rest) + L::load(from + i, rest)).store(into + i, rest);
  }
}

// Sixteen partial sums at a time, so that no running sum has more than a few terms.
template <class L, class W>
void finish_columns(W* dweight, const float* partials, int64_t count, int64_t stride, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i += L::kCount) {
    const int64_t rest = end - i < L::kCount ? end - i : L::kCount;
    L total = L::all(0.0f);
    for (int64_t first = 0; first < count; first += 16) {
      L sum = L::all(0.0f);
      for (int64_t p = first; p < count && p < first + 16; ++p) sum = sum + L::load(partials + p * stride + i, rest);
      total = total + sum;
    }
    total.store(dweight + i, rest);
  }
}

// ---- From the types of arguments to the loops above.

template <class L, class T, class W, bool kResidual, bool kLlama>
void forward_stream(const pllm_rms_norm_forward& a, int64_t begin, int64_t end, bool stream) {
  (stream ? forward_rows<L, T, W, kResidual, kLlama, true> : forward_rows<L, T, W, kResidual, kLlama, false>)(a, begin, end);
}

template <class L, class T, class W>
void forward_typed(const pllm_rms_norm_forward& a, int64_t begin, int64_t end, bool stream) {
  constexpr bool kHalf = sizeof(T) == 2;  // for fp32 the two roundings are one
  const bool llama = kHalf && a.shape.rounding == PLLM_ROUND_LLAMA;
  if (a.residual) {
    (llama ? forward_stream<L, T, W, true, kHalf> : forward_stream<L, T, W, true, false>)(a, begin, end, stream);
  } else {
    (llama ? forward_stream<L, T, W, false, kHalf> : forward_stream<L, T, W, false, false>)(a, begin, end, stream);
  }
}

template <class L>
void forward(const pllm_rms_norm_forward& a, int64_t begin, int64_t end, bool stream) {
  const bool mixed = a.shape.weight_type != a.shape.x_type;
  switch (a.shape.x_type) {
    case PLLM_FLOAT16: return (mixed ? forward_typed<L, Half, float> : forward_typed<L, Half, Half>)(a, begin, end, stream);
    case PLLM_BFLOAT16: return (mixed ? forward_typed<L, Bfloat, float> : forward_typed<L, Bfloat, Bfloat>)(a, begin, end, stream);
    default: return forward_typed<L, float, float>(a, begin, end, stream);
  }
}

template <class L, class T, class W>
void backward_typed(const pllm_rms_norm_backward& a, int64_t begin, int64_t end, bool stream, float* dweight) {
  constexpr bool kHalf = sizeof(T) == 2;
  const bool llama = kHalf && a.shape.rounding == PLLM_ROUND_LLAMA;
  if (stream) {
    (llama ? backward_rows<L, T, W, kHalf, true> : backward_rows<L, T, W, false, true>)(a, begin, end, dweight);
  } else {
    (llama ? backward_rows<L, T, W, kHalf, false> : backward_rows<L, T, W, false, false>)(a, begin, end, dweight);
  }
}

template <class L>
void backward(const pllm_rms_norm_backward& a, int64_t begin, int64_t end, bool stream, float* dweight) {
  const bool mixed = a.shape.weight_type != a.shape.x_type;
  switch (a.shape.x_type) {
    case PLLM_FLOAT16:
      return (mixed ? backward_typed<L, Half, float> : backward_typed<L, Half, Half>)(a, begin, end, stream, dweight);
    case PLLM_BFLOAT16:
      return (mixed ? backward_typed<L, Bfloat, float> : backward_typed<L, Bfloat, Bfloat>)(a, begin, end, stream, dweight);
    default: return backward_typed<L, float, float>(a, begin, end, stream, dweight);
  }
}

template <class L>
void finish(const pllm_rms_norm_backward& a, const float* partials, int64_t count, int64_t stride, int64_t begin, int64_t end) {
  switch (a.shape.weight_type) {
    case PLLM_FLOAT16: return finish_columns<L>(static_cast<Half*>(a.dweight), partials, count, stride, begin, end);
    case PLLM_BFLOAT16: return finish_columns<L>(static_cast<Bfloat*>(a.dweight), partials, count, stride, begin, end);
    default: return finish_columns<L>(static_cast<float*>(a.dweight), partials, count, stride, begin, end);
  }
}

template <class L>
const CpuKernels* kernels_of() {
  static const CpuKernels kernels = {forward<L>, backward<L>, add<L>, finish<L>, L::kCount};
  return &kernels;
}

}  // namespace
}  // namespace pllm
