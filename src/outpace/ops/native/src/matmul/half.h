// Scalar conversions between float32 and the 16-bit formats, exact or rounded to nearest with ties to even.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

namespace outpace {

// Moves exponent and mantissa into place; multiplying by 2^112 corrects the exponent's bias, subnormals included.
inline float float_from_half(uint16_t h) {
  uint32_t bits = std::bit_cast<uint32_t>(std::bit_cast<float>((h & 0x7FFFU) << 13) * 0x1p112F);
  if ((h & 0x7C00U) == 0x7C00U) bits |= 0x7F800000U;  // infinities and NaNs
  return std::bit_cast<float>(bits | (h & 0x8000U) << 16);
}

inline uint16_t half_from_float(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x), sign = bits >> 16 & 0x8000U;
  const uint32_t magnitude = bits & 0x7FFFFFFFU;
  if (magnitude > 0x7F800000U) return static_cast<uint16_t>(sign | 0x7E00U);
  if (magnitude >= 0x47800000U) return static_cast<uint16_t>(sign | 0x7C00U);  // 65536 and above
  if (magnitude < 0x38800000U) {  // below 2^-14: adding 1/2 leaves the subnormal's bits at the low end, rounded
    const uint32_t sum = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5F);
    return static_cast<uint16_t>(sign | (sum - 0x3F000000U));
  }
  const uint32_t rounded = magnitude - 0x38000000U + 0x0FFFU + (magnitude >> 13 & 1U);
  return static_cast<uint16_t>(sign | rounded >> 13);
}

inline float float_from_bf16(uint16_t b) { return std::bit_cast<float>(static_cast<uint32_t>(b) << 16); }

// Reads a number from unaligned bytes.
template <class T>
T read_bytes(const uint8_t* p) {
  T v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

}  // namespace outpace
