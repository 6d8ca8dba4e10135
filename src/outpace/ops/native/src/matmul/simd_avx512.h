// AVX-512 (F, BW, DQ, VL, VNNI): sixteen lanes, a whole tile at once.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace outpace {
namespace {

struct Avx512 {
  static constexpr int kLanes = 16;
  static constexpr int kRowBlock = 16;         // 16 accumulators, 8 vectors of codes, and some to spare
  static constexpr int kRowsTogether = 4;      // rows whose dot products take turns
  static constexpr int kFloatRows = 16;        // the same of float kernels
  static constexpr bool kSignedCodes = false;  // whether Dot<8> takes 128 away from its codes
  using Float = __m512;
  using Int = __m512i;

  static Float zero() { return _mm512_setzero_ps(); }
  static Float load(const uint8_t* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Float v) { _mm512_storeu_ps(p, v); }
  static Float splat(float v) { return _mm512_set1_ps(v); }
  static Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
  static Float multiply(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static Float multiply_add(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }

  static Float from_int(Int v) { return _mm512_cvtepi32_ps(v); }
  static Float from_halves(const uint8_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static Int widen(const uint8_t* p) { return _mm512_cvtepu8_epi32(bytes(p)); }
  static Float from_unsigned_bytes(const uint8_t* p) { return from_int(widen(p)); }
  static Float from_signed_bytes(const uint8_t* p) { return from_int(_mm512_cvtepi8_epi32(bytes(p))); }
  // 2^(byte - 128); 0 for bytes 0 and 1, whose powers are subnormal.
  static Float from_exponents(const uint8_t* p) {
    const Int e = _mm512_sub_epi32(_mm512_max_epi32(widen(p), splat_int(1)), splat_int(1));
    return _mm512_castsi512_ps(_mm512_slli_epi32(e, 23));
  }
  static Float from_bf16_low(Int v) { return _mm512_castsi512_ps(_mm512_slli_epi32(v, 16)); }
  static Float from_bf16_high(Int v) { return _mm512_castsi512_ps(v & splat_int(static_cast<int32_t>(0xFFFF0000))); }

  static Int load_int(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static Int splat_int(int32_t v) { return _mm512_set1_epi32(v); }
  template <int N>
  static Int shift_right(Int v) {
    return _mm512_srli_epi32(v, N);
  }
  template <int N>
  static Int shift_left(Int v) {
    return _mm512_slli_epi32(v, N);
  }
  // low | (high & mask)
  static Int merge(Int low, Int high, Int mask) { return _mm512_ternarylogic_epi32(low, high, mask, 0xF8); }

  // The table's entry for each byte, which is below 16.
  static Int look_up(const uint8_t* table, Int v) {
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(bytes(table)), v);
  }

  // The dot products of each dword's codes with activations, four codes an `add`. The compiler would broadcast the
  // activations by an instruction of its own; fewer instructions let the CPU look further ahead into the stream of
  // weights (benchmarks/LOG.md).
  template <int bits, int run>
  class Dot {
   public:
    void start(int32_t first) { sum_ = splat_int(first); }

    // Adds vector j of a group: unsigned codes below 2^bits, times the four activations at p.
    void add(int /*j*/, Int codes, const int8_t* p) {
      const auto& four = *reinterpret_cast<const Four*>(p);
      asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum_) : "v"(codes), "m"(four));
    }
    Int sum() const { return sum_; }

   private:
    Int sum_;
  };

  // The four bytes at p, in every dword.
  static Int splat_bytes(const int8_t* p) {
    int32_t four;
    __builtin_memcpy(&four, p, sizeof four);
    return splat_int(four);
  }
  // sum + unsigned codes times signed bytes, by dwords.
  static Int dot(Int sum, Int codes, Int bytes) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(bytes));
    return sum;
  }

  static Int bits(Float v) { return _mm512_castps_si512(v); }
  static Int bit_and(Int a, Int b) { return _mm512_and_si512(a, b); }
  static Int add_int(Int a, Int b) { return _mm512_add_epi32(a, b); }
  static Int largest(Int a, Int b) { return _mm512_max_epi32(a, b); }
  static int32_t largest_lane(Int v) { return _mm512_reduce_max_epi32(v); }
  static int32_t sum_lanes(Int v) { return _mm512_reduce_add_epi32(v); }
  // The low byte of each lane.
  static void store_bytes(int8_t* p, Int v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(v));
  }

 private:
  struct Four {
    int8_t q[4];
  };
  static __m128i bytes(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
};

}  // namespace
}  // namespace outpace
