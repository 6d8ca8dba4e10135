// AVX2 with FMA and F16C: eight lanes, half a tile at once.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace outpace {
namespace {

struct Avx2 {
  static constexpr int kLanes = 8;
  static constexpr int kRowBlock = 4;         // 4 accumulators, 8 vectors of codes, and some to spare
  static constexpr int kFloatParts = 2;       // vectors of columns that a float kernel works on together
  static constexpr bool kSignedCodes = true;  // whether dot8 takes 128 away from its codes
  using Float = __m256;
  using Int = __m256i;

  static Float zero() { return _mm256_setzero_ps(); }
  static Float load(const uint8_t* p) { return _mm256_loadu_ps(reinterpret_cast<const float*>(p)); }
  static void store(float* p, Float v) { _mm256_storeu_ps(p, v); }
  static Float splat(float v) { return _mm256_set1_ps(v); }
  static Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
  static Float multiply(Float a, Float b) { return _mm256_mul_ps(a, b); }
  static Float multiply_add(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }

  static Float from_int(Int v) { return _mm256_cvtepi32_ps(v); }
  static Float from_halves(const uint8_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static Float from_unsigned_bytes(const uint8_t* p) { return from_int(_mm256_cvtepu8_epi32(bytes(p))); }
  static Float from_signed_bytes(const uint8_t* p) { return from_int(_mm256_cvtepi8_epi32(bytes(p))); }
  static Float from_bf16_low(Int v) { return _mm256_castsi256_ps(_mm256_slli_epi32(v, 16)); }
  static Float from_bf16_high(Int v) {
    return _mm256_castsi256_ps(_mm256_and_si256(v, splat_int(static_cast<int32_t>(0xFFFF0000))));
  }

  static Int load_int(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static Int splat_int(int32_t v) { return _mm256_set1_epi32(v); }
  template <int N>
  static Int shift_right(Int v) {
    return _mm256_srli_epi32(v, N);
  }
  template <int N>
  static Int shift_left(Int v) {
    return _mm256_slli_epi32(v, N);
  }
  // low | (high & mask)
  static Int merge(Int low, Int high, Int mask) { return _mm256_or_si256(low, _mm256_and_si256(high, mask)); }

  // sum + the dot product of each dword's four unsigned codes with the four activations at p; codes below 128 (pairs of
  // products then fit 16 bits: 2 * 127 * 127 < 32768).
  static Int dot7(Int sum, Int codes, const int8_t* p) { return dot(sum, codes, splat_four(p)); }
  // The same for codes minus 128, which would not fit: |code - 128| times the activation with its sign.
  static Int dot8(Int sum, Int codes, const int8_t* p) {
    const Int numbers = _mm256_xor_si256(codes, _mm256_set1_epi8(-128));
    return dot(sum, _mm256_abs_epi8(numbers), _mm256_sign_epi8(splat_four(p), numbers));
  }

  static Int bits(Float v) { return _mm256_castps_si256(v); }
  static Int bit_and(Int a, Int b) { return _mm256_and_si256(a, b); }
  static Int add_int(Int a, Int b) { return _mm256_add_epi32(a, b); }
  static Int largest(Int a, Int b) { return _mm256_max_epi32(a, b); }
  static int32_t largest_lane(Int v) {
    __m128i half = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0x4E));
    return _mm_cvtsi128_si32(_mm_max_epi32(half, _mm_shuffle_epi32(half, 0xB1)));
  }
  static int32_t sum_lanes(Int v) {
    __m128i half = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(half, _mm_shuffle_epi32(half, 0xB1)));
  }
  // The low byte of each lane.
  static void store_bytes(int8_t* p, Int v) {
    const __m256i low = _mm256_shuffle_epi8(v, _mm256_set1_epi32(0x0C080400));
    const __m128i both = _mm_unpacklo_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), both);
  }

 private:
  static Int splat_four(const int8_t* p) {
    int32_t four;
    std::memcpy(&four, p, sizeof four);
    return splat_int(four);
  }
  static Int dot(Int sum, Int codes, Int activations) {
    const Int pairs = _mm256_maddubs_epi16(codes, activations);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  static __m128i bytes(const uint8_t* p) { return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)); }
};

}  // namespace
}  // namespace outpace
