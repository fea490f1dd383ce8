// The 16-bit types of a CPU's memory, and their conversion without help of the processor (round to nearest, ties to even).
#ifndef PLLM_RMS_NORM_CPU_HALF_H_
#define PLLM_RMS_NORM_CPU_HALF_H_

#include <cstdint>
#include <cstring>

namespace pllm {

struct Half {
  uint16_t bits;
};
struct Bfloat {
  uint16_t bits;
};

inline float float_of(uint32_t bits) {
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}
inline uint32_t bits_of(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, sizeof bits);
  return bits;
}

inline float to_float(float f) { return f; }
inline void from_float(float f, float* out) { *out = f; }

inline float to_float(Bfloat b) { return float_of(static_cast<uint32_t>(b.bits) << 16); }
inline void from_float(float f, Bfloat* out) {
  const uint32_t bits = bits_of(f);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  // Rounding could carry a NaN over into infinity: keep its sign and quiet it instead.
  out->bits = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16) | 0x40u : rounded);
}

inline float to_float(Half h) {
  const uint32_t sign = static_cast<uint32_t>(h.bits & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(h.bits & 0x7fffu) << 13;
  if (magnitude >= 0x0f800000u) {  // infinity; NaN, quieted as processors do it
    return float_of(sign | 0x70000000u | magnitude | (magnitude > 0x0f800000u ? 0x400000u : 0u));
  }
  // The exponent's bias differs by 112; the product also normalises what is subnormal in half precision.
  return float_of(sign | bits_of(float_of(magnitude) * 0x1p112f));
}
inline void from_float(float f, Half* out) {
  const uint32_t bits = bits_of(f);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
  } else if (magnitude >= 0x477ff000u) {  // 65520 and above round to infinity
    half = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 leaves a multiple of 2^-24 in the low bits, rounded
    half = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
  } else {
    half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  out->bits = static_cast<uint16_t>(sign | half);
}

}  // namespace pllm

#endif  // PLLM_RMS_NORM_CPU_HALF_H_
