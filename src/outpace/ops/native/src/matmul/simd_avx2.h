// AVX2 with FMA and F16C: sixteen lanes as two vectors of eight, so a whole tile at once.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace outpace {
namespace {

struct Avx2 {
  static constexpr int kLanes = 16;
  static constexpr int kRowBlock = 8;
  static constexpr int kRowsTogether = 4;     // 8 vectors of sums, 2 of weights, and some to spare
  static constexpr int kFloatRows = 4;        // the same of float kernels
  static constexpr bool kSignedCodes = true;  // whether Dot<8> takes 128 away from its codes
  struct Float {
    __m256 low, high;
  };
  struct Int {
    __m256i low, high;
  };

  static Float zero() { return splat(0.0F); }
  static Float load(const uint8_t* p) {
    const auto* numbers = reinterpret_cast<const float*>(p);
    return {_mm256_loadu_ps(numbers), _mm256_loadu_ps(numbers + 8)};
  }
  static void store(float* p, Float v) {
    _mm256_storeu_ps(p, v.low);
    _mm256_storeu_ps(p + 8, v.high);
  }
  static Float splat(float v) { return {_mm256_set1_ps(v), _mm256_set1_ps(v)}; }
  static Float add(Float a, Float b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
  static Float multiply(Float a, Float b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
  static Float multiply_add(Float a, Float b, Float c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
  }

  static Float from_int(Int v) { return {_mm256_cvtepi32_ps(v.low), _mm256_cvtepi32_ps(v.high)}; }
  static Float from_halves(const uint8_t* p) {
    const auto* halves = reinterpret_cast<const __m128i*>(p);
    return {_mm256_cvtph_ps(_mm_loadu_si128(halves)), _mm256_cvtph_ps(_mm_loadu_si128(halves + 1))};
  }
  static Int widen(const uint8_t* p) { return {_mm256_cvtepu8_epi32(bytes(p)), _mm256_cvtepu8_epi32(bytes(p + 8))}; }
  static Float from_unsigned_bytes(const uint8_t* p) { return from_int(widen(p)); }
  static Float from_signed_bytes(const uint8_t* p) {
    return from_int({_mm256_cvtepi8_epi32(bytes(p)), _mm256_cvtepi8_epi32(bytes(p + 8))});
  }
  // 2^(byte - 128); 0 for bytes 0 and 1, whose powers are subnormal.
  static Float from_exponents(const uint8_t* p) {
    return as_float(shift_left<23>(add_int(largest(widen(p), splat_int(1)), splat_int(-1))));
  }
  static Float from_bf16_low(Int v) { return as_float(shift_left<16>(v)); }
  static Float from_bf16_high(Int v) { return as_float(bit_and(v, splat_int(static_cast<int32_t>(0xFFFF0000)))); }

  static Int load_int(const uint8_t* p) {
    const auto* numbers = reinterpret_cast<const __m256i*>(p);
    return {_mm256_loadu_si256(numbers), _mm256_loadu_si256(numbers + 1)};
  }
  static Int splat_int(int32_t v) { return {_mm256_set1_epi32(v), _mm256_set1_epi32(v)}; }
  template <int N>
  static Int shift_right(Int v) {
    return {_mm256_srli_epi32(v.low, N), _mm256_srli_epi32(v.high, N)};
  }
  template <int N>
  static Int shift_left(Int v) {
    return {_mm256_slli_epi32(v.low, N), _mm256_slli_epi32(v.high, N)};
  }
  // low | (high & mask)
  static Int merge(Int low, Int high, Int mask) {
    const Int bits = bit_and(high, mask);
    return {_mm256_or_si256(low.low, bits.low), _mm256_or_si256(low.high, bits.high)};
  }

  // The table's entry for each byte, which is below 16.
  static Int look_up(const uint8_t* table, Int v) {
    const __m256i entries = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
    return {_mm256_shuffle_epi8(entries, v.low), _mm256_shuffle_epi8(entries, v.high)};
  }

  // The dot products of each dword's codes with activations, four codes an `add`. Pairs of products are summed in 16
  // bits for as long as they surely fit, and only then widened: two instructions a vector in place of three. `run`: how
  // many vectors are added before `sum` is asked for, or `start` called again.
  template <int bits, int run>
  class Dot {
   public:
    void start(int32_t first) { sum_ = splat_int(first); }

    // Adds vector j of a group: unsigned codes below 2^bits, those of 8 bits less 128, times the four activations at p.
    [[gnu::always_inline]] void add(int j, Int codes, const int8_t* p) {
      int32_t four;
      std::memcpy(&four, p, sizeof four);
      const __m256i activations = _mm256_set1_epi32(four);
      add_half(j, codes.low, activations, pairs_.low, sum_.low);
      add_half(j, codes.high, activations, pairs_.high, sum_.high);
    }
    Int sum() const { return sum_; }

   private:
    static constexpr int kLargest = bits == 8 ? 128 : (1 << bits) - 1;  // |code|
    static constexpr int kFitting = 32767 / (2 * 127 * kLargest);       // pairs that surely fit
    static constexpr int kTogether = kFitting >= run ? run : kFitting >= 4 ? 4 : kFitting >= 2 ? 2 : 1;

    [[gnu::always_inline]] static void add_half(int j, __m256i codes, __m256i activations, __m256i& pairs,
                                                __m256i& sum) {
      const __m256i products = products_of(codes, activations);
      pairs = j % kTogether == 0 ? products : _mm256_add_epi16(pairs, products);
      asm("" : "+x"(pairs));  // or the compiler keeps all products, and adds them up when no register is left
      if (j % kTogether == kTogether - 1) {
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
      }
    }
    static __m256i products_of(__m256i codes, __m256i activations) {
      if constexpr (bits < 8) return _mm256_maddubs_epi16(codes, activations);
      const __m256i numbers = _mm256_xor_si256(codes, _mm256_set1_epi8(-128));
      return _mm256_maddubs_epi16(_mm256_abs_epi8(numbers), _mm256_sign_epi8(activations, numbers));
    }

    Int pairs_, sum_;
  };

  static Int bits(Float v) { return {_mm256_castps_si256(v.low), _mm256_castps_si256(v.high)}; }
  static Int bit_and(Int a, Int b) { return {_mm256_and_si256(a.low, b.low), _mm256_and_si256(a.high, b.high)}; }
  static Int add_int(Int a, Int b) { return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)}; }
  static Int largest(Int a, Int b) { return {_mm256_max_epi32(a.low, b.low), _mm256_max_epi32(a.high, b.high)}; }
  static int32_t largest_lane(Int v) {
    const __m256i all = _mm256_max_epi32(v.low, v.high);
    __m128i half = _mm_max_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
    half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0x4E));
    return _mm_cvtsi128_si32(_mm_max_epi32(half, _mm_shuffle_epi32(half, 0xB1)));
  }
  static int32_t sum_lanes(Int v) {
    const __m256i all = _mm256_add_epi32(v.low, v.high);
    __m128i half = _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
    half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(half, _mm_shuffle_epi32(half, 0xB1)));
  }
  // The low byte of each lane.
  static void store_bytes(int8_t* p, Int v) {
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), low_bytes(v.low));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p + 8), low_bytes(v.high));
  }

 private:
  static Float as_float(Int v) { return {_mm256_castsi256_ps(v.low), _mm256_castsi256_ps(v.high)}; }
  static __m128i bytes(const uint8_t* p) { return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)); }
  static __m128i low_bytes(__m256i v) {
    const __m256i low = _mm256_shuffle_epi8(v, _mm256_set1_epi32(0x0C080400));
    return _mm_unpacklo_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
  }
};

}  // namespace
}  // namespace outpace
