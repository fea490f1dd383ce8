// A fuzz of the CPU's kernels for AddressSanitizer and UBSan: every tensor is its own block of memory of exactly the size that
// the interface asks for, so that one byte too far is seen. Also holds results against the formula in double.
//
//   fuzz_cpu TRIALS
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#include "../csrc/rms_norm.h"
#include "../csrc/rms_norm_cpu_half.h"

namespace {

std::mt19937_64 generator(7);

int64_t below(int64_t bound) { return static_cast<int64_t>(generator() % static_cast<uint64_t>(bound)); }

// [rows, hidden] numbers of a type, the last byte at the end of its block; `shift` bytes are left free at the front.
struct Tensor {
  int64_t rows, hidden, stride;
  int32_t type;
  std::unique_ptr<char[]> block;
  char* data;

  Tensor(int64_t rows_, int64_t hidden_, int32_t type_, int64_t gap)
      : rows(rows_), hidden(hidden_), stride(hidden_ + gap), type(type_) {
    const int64_t size = type == PLLM_FLOAT32 ? 4 : 2;
    const int64_t shift = gap * size;
    const int64_t bytes = rows ? ((rows - 1) * stride + hidden) * size : 0;
    block.reset(new char[static_cast<size_t>(shift + bytes)]);
    data = block.get() + shift;
  }
  void put(int64_t r, int64_t i, float value) {
    const int64_t at = r * stride + i;
    switch (type) {
      case PLLM_FLOAT16: pllm::from_float(value, reinterpret_cast<pllm::Half*>(data) + at); break;
      case PLLM_BFLOAT16: pllm::from_float(value, reinterpret_cast<pllm::Bfloat*>(data) + at); break;
      default: reinterpret_cast<float*>(data)[at] = value;
    }
  }
  double get(int64_t r, int64_t i) const {
    const int64_t at = r * stride + i;
    switch (type) {
      case PLLM_FLOAT16: return pllm::to_float(reinterpret_cast<const pllm::Half*>(data)[at]);
      case PLLM_BFLOAT16: return pllm::to_float(reinterpret_cast<const pllm::Bfloat*>(data)[at]);
      default: return reinterpret_cast<const float*>(data)[at];
    }
  }
  void fill() {
    std::normal_distribution<float> normal;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < hidden; ++i) put(r, i, normal(generator));
    }
  }
};

int failures = 0;

void hold(double found, double exact, double scale, int32_t type, const char* what) {
  const double limit = type == PLLM_FLOAT32 ? 2e-6 : 1e-2;
  const double smallest = type == PLLM_FLOAT16 ? 0x1p-24 : 0x1p-126;  // where rounding stops being relative
  if (std::fabs(found - exact) <= limit * scale + smallest) return;
  if (++failures < 10) std::fprintf(stderr, "%s: %.9g instead of %.9g\n", what, found, exact);
}

void trial() {
  const int32_t types[] = {PLLM_FLOAT32, PLLM_FLOAT16, PLLM_BFLOAT16};
  const int32_t type = types[below(3)], weight_type = below(2) ? type : static_cast<int32_t>(PLLM_FLOAT32);
  const int64_t hidden = 1 + (below(4) ? below(200) : below(5000)), rows = below(1 + 60000 / hidden);
  const int64_t gap = below(2) ? 0 : below(40);
  const int32_t rounding = static_cast<int32_t>(below(2));
  const pllm_rms_norm_shape shape = {rows, hidden, 1e-5f, type, weight_type, rounding};
  const pllm_cpu_options options = {static_cast<int32_t>(below(5)), static_cast<int32_t>(1 + below(pllm_rms_norm_cpu_isa())),
                                    static_cast<int32_t>(below(3))};
  const bool residual = below(2), want_dweight = below(4);

  Tensor x(rows, hidden, type, gap), r(rows, hidden, type, gap), sum(rows, hidden, type, gap), y(rows, hidden, type, gap);
  Tensor weight(1, hidden, weight_type, 0), invvar(1, rows, PLLM_FLOAT32, 0);
  x.fill(), r.fill(), weight.fill();
  const pllm_rms_norm_forward forward = {
      shape,  x.data,   x.stride, residual ? r.data : nullptr, r.stride, weight.data, residual ? sum.data : nullptr, sum.stride,
      y.data, y.stride, reinterpret_cast<float*>(invvar.data)};
  if (pllm_rms_norm_forward_cpu(&forward, &options) != PLLM_OK) std::abort();

  const Tensor& s = residual ? sum : x;
  Tensor dy(rows, hidden, type, gap), dsum(rows, hidden, type, gap), dx(rows, hidden, type, gap), dweight(1, hidden, weight_type, 0);
  dy.fill(), dsum.fill();
  const int64_t size = pllm_rms_norm_workspace_cpu(&shape, want_dweight);
  Tensor workspace(1, size / 4, PLLM_FLOAT32, 0);
  const pllm_rms_norm_backward backward = {
      shape,       dy.data,  dy.stride, s.data,    s.stride, weight.data, reinterpret_cast<float*>(invvar.data),
      residual ? dsum.data : nullptr, dsum.stride, dx.data,  dx.stride, want_dweight ? dweight.data : nullptr,
      want_dweight ? workspace.data : nullptr, want_dweight ? size : 0};
  if (pllm_rms_norm_backward_cpu(&backward, &options) != PLLM_OK) std::abort();

  std::vector<double> exact_dweight(static_cast<size_t>(hidden)), scale(exact_dweight);
  for (int64_t row = 0; row < rows; ++row) {
    double squares = 0, products = 0, magnitudes = 0;
    for (int64_t i = 0; i < hidden; ++i) squares += s.get(row, i) * s.get(row, i);
    const double inv = 1 / std::sqrt(squares / static_cast<double>(hidden) + 1e-5);
    for (int64_t i = 0; i < hidden; ++i) {
      const double product = dy.get(row, i) * weight.get(0, i) * s.get(row, i) * inv;
      products += product, magnitudes += std::fabs(product);
    }
    for (int64_t i = 0; i < hidden; ++i) {
      const double n = s.get(row, i) * inv, g = dy.get(row, i) * weight.get(0, i);
      hold(y.get(row, i), n * weight.get(0, i), std::fabs(n * weight.get(0, i)), type, "y");
      const double mean = products / static_cast<double>(hidden), extra = residual ? dsum.get(row, i) : 0;
      const double terms = inv * (std::fabs(g) + std::fabs(n) * magnitudes / static_cast<double>(hidden)) + std::fabs(extra);
      hold(dx.get(row, i), inv * (g - n * mean) + extra, terms, type, "dx");
      exact_dweight[static_cast<size_t>(i)] += dy.get(row, i) * n;
      scale[static_cast<size_t>(i)] += std::fabs(dy.get(row, i) * n);
    }
  }
  for (int64_t i = 0; i < hidden && want_dweight; ++i) {
    const size_t at = static_cast<size_t>(i);
    // LLaMA's rounding makes n of a 16-bit type itself.
    hold(dweight.get(0, i), exact_dweight[at], scale[at], rounding ? type : weight_type, "dweight");
  }
}

}  // namespace

int main(int, char** argv) {
  const int trials = std::atoi(argv[1]);
  for (int i = 0; i < trials; ++i) trial();
  std::printf("%d trials, %d failures\n", trials, failures);
  return failures != 0;
}
