// What memory allows: streams of given bytes, read and written by several threads, for benchmarks to compare kernels with.
#include <omp.h>

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

// out[k] = in[0] + in[1] + ... for the bytes [begin, end), multiples of 64; on x86-64 with stores that bypass the caches.
void combine(const char* const* in, int inputs, char* const* out, int outputs, int64_t begin, int64_t end) {
#if defined(__x86_64__)
  for (int64_t i = begin; i < end; i += 64) {
    __m128 v[4];
    for (int j = 0; j < 4; ++j) v[j] = _mm_loadu_ps(reinterpret_cast<const float*>(in[0] + i) + 4 * j);
    for (int k = 1; k < inputs; ++k) {
      for (int j = 0; j < 4; ++j) v[j] = _mm_add_ps(v[j], _mm_loadu_ps(reinterpret_cast<const float*>(in[k] + i) + 4 * j));
    }
    for (int k = 0; k < outputs; ++k) {
      for (int j = 0; j < 4; ++j) _mm_stream_ps(reinterpret_cast<float*>(out[k] + i) + 4 * j, v[j]);
    }
  }
  _mm_sfence();
#else
  for (int64_t i = begin; i < end; i += 4) {
    float v = 0;
    for (int k = 0; k < inputs; ++k) v += *reinterpret_cast<const float*>(in[k] + i);
    for (int k = 0; k < outputs; ++k) *reinterpret_cast<float*>(out[k] + i) = v;
  }
#endif
}

}  // namespace

extern "C" {

// memcpy, a part of the bytes per thread.
void memory_copy(char* to, const char* from, int64_t bytes, int threads) {
#pragma omp parallel for schedule(static, 1) num_threads(threads)
  for (int t = 0; t < threads; ++t) {
    const int64_t begin = bytes / 64 * t / threads * 64, end = t + 1 == threads ? bytes : bytes / 64 * (t + 1) / threads * 64;
    std::memcpy(to + begin, from + begin, static_cast<size_t>(end - begin));
  }
}

// Reads `inputs` and writes `outputs` arrays of `bytes` each (a multiple of 64, the outputs aligned to 16): 2 and 1 are the triad.
void memory_streams(const char* const* in, int inputs, char* const* out, int outputs, int64_t bytes, int threads) {
#pragma omp parallel for schedule(static, 1) num_threads(threads)
  for (int t = 0; t < threads; ++t) {
    combine(in, inputs, out, outputs, bytes / 64 * t / threads * 64, bytes / 64 * (t + 1) / threads * 64);
  }
}

}  // extern "C"
