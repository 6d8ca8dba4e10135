// Plain 16-byte vectors of the compiler: SSE2 on x86-64, NEON on aarch64, and whatever else there is.
#pragma once

#if defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include <cstdint>
#include <cstring>

namespace outpace {
namespace {

struct Baseline {
  static constexpr int kLanes = 4;
  static constexpr int kRowBlock = 4;          // 4 accumulators, 8 vectors of codes, and some to spare
  static constexpr int kRowsTogether = 4;      // rows whose dot products take turns
  static constexpr int kFloatRows = 4;         // the same of float kernels
  static constexpr bool kSignedCodes = false;  // whether Dot<8> takes 128 away from its codes
  using Float [[gnu::vector_size(16)]] = float;
  using Int [[gnu::vector_size(16)]] = int32_t;

  static Float zero() { return splat(0.0F); }
  static Float load(const uint8_t* p) { return read<Float>(p); }
  static void store(float* p, Float v) { std::memcpy(p, &v, sizeof v); }
  static Float splat(float v) { return Float{v, v, v, v}; }
  static Float add(Float a, Float b) { return a + b; }
  static Float multiply(Float a, Float b) { return a * b; }
  // Two roundings: not all CPUs here have FMA.
  static Float multiply_add(Float a, Float b, Float c) { return a * b + c; }

  static Float from_int(Int v) { return __builtin_convertvector(v, Float); }
  // Moves exponent and mantissa into place; multiplying by 2^112 corrects the exponent's bias, subnormals included.
  static Float from_halves(const uint8_t* p) {
    using Halves [[gnu::vector_size(8)]] = uint16_t;
    const Int h = __builtin_convertvector(read<Halves>(p), Int);
    const Int magnitude = (h & 0x7FFF) << 13;
    Int bits = as_int(as_float(magnitude) * splat(0x1p112F));
    bits |= ((h & 0x7C00) == 0x7C00) & 0x7F800000;  // infinities and NaNs
    return as_float(bits | ((h & 0x8000) << 16));
  }
  static Float from_unsigned_bytes(const uint8_t* p) {
    return Float{static_cast<float>(p[0]), static_cast<float>(p[1]), static_cast<float>(p[2]),
                 static_cast<float>(p[3])};
  }
  static Int widen(const uint8_t* p) { return Int{p[0], p[1], p[2], p[3]}; }
  static Float from_signed_bytes(const uint8_t* p) {
    return from_int(Int{as_signed(p[0]), as_signed(p[1]), as_signed(p[2]), as_signed(p[3])});
  }
  // 2^(byte - 128); 0 for bytes 0 and 1, whose powers are subnormal.
  static Float from_exponents(const uint8_t* p) { return as_float((largest(widen(p), splat_int(1)) - 1) << 23); }
  static Float from_bf16_low(Int v) { return as_float(v << 16); }
  static Float from_bf16_high(Int v) { return as_float(v & static_cast<int32_t>(0xFFFF0000)); }

  static Int load_int(const uint8_t* p) { return read<Int>(p); }
  static Int splat_int(int32_t v) { return Int{v, v, v, v}; }
  template <int N>
  static Int shift_right(Int v) {
    return (v >> N) & static_cast<int32_t>(0xFFFFFFFFU >> N);
  }
  template <int N>
  static Int shift_left(Int v) {
    return v << N;
  }
  // low | (high & mask)
  static Int merge(Int low, Int high, Int mask) { return low | (high & mask); }

  // The table's entry for each byte, which is below 16.
  static Int look_up(const uint8_t* table, Int v) {
#if defined(__aarch64__)
    return vreinterpretq_s32_u8(vqtbl1q_u8(vld1q_u8(table), vreinterpretq_u8_s32(v)));
#else
    uint8_t places[16];
    std::memcpy(places, &v, sizeof places);
    for (uint8_t& place : places) place = table[place];
    return read<Int>(places);
#endif
  }

  // The dot products of each dword's codes with activations, four codes an `add`.
  template <int bits, int run>
  class Dot {
   public:
    void start(int32_t first) { sum_ = splat_int(first); }

    // Adds vector j of a group: unsigned codes below 2^bits, times the four activations at p.
    void add(int /*j*/, Int codes, const int8_t* p) {
      int32_t four;
      std::memcpy(&four, p, sizeof four);
      const Int activations = splat_int(four);
      const Int even = codes & 0x00FF00FF, odd = shift_right<8>(codes) & 0x00FF00FF;
      sum_ += add_products(even, sign_extend(activations << 8)) + add_products(odd, sign_extend(activations));
    }
    Int sum() const { return sum_; }

   private:
    Int sum_;
  };

  static Int bits(Float v) { return as_int(v); }
  static Int bit_and(Int a, Int b) { return a & b; }
  static Int add_int(Int a, Int b) { return a + b; }
  static Int largest(Int a, Int b) { return a > b ? a : b; }
  static int32_t largest_lane(Int v) {
    const int32_t low = v[0] > v[1] ? v[0] : v[1], high = v[2] > v[3] ? v[2] : v[3];
    return low > high ? low : high;
  }
  static int32_t sum_lanes(Int v) { return v[0] + v[1] + v[2] + v[3]; }
  // The low byte of each lane.
  static void store_bytes(int8_t* p, Int v) {
    for (int i = 0; i < kLanes; ++i) p[i] = static_cast<int8_t>(v[i]);
  }

 private:
  using Shorts [[gnu::vector_size(16)]] = int16_t;

  template <class T>
  static T read(const uint8_t* p) {
    T v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  static Float as_float(Int v) { return reinterpret_cast<Float>(v); }
  static Int as_int(Float v) { return reinterpret_cast<Int>(v); }
  static int32_t as_signed(uint8_t v) { return static_cast<int8_t>(v); }
  // The high byte of each 16-bit half, as a signed number.
  static Int sign_extend(Int v) { return reinterpret_cast<Int>(reinterpret_cast<Shorts>(v) >> 8); }
  // Products of 16-bit halves, added in pairs.
  static Int add_products(Int a, Int b) {
#if defined(__SSE2__)
    return reinterpret_cast<Int>(_mm_madd_epi16(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
#else
    return ((a << 16) >> 16) * ((b << 16) >> 16) + (a >> 16) * (b >> 16);
#endif
  }
};

}  // namespace
}  // namespace outpace
