// Vectors of float32 for the instruction set that a file is compiled for: GCC's vector extension, and the few
// operations that it lacks. Included only by kernel files, inside which everything lives in a namespace named after the
// set.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>
#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace outpace::OUTPACE_TARGET {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

template <class T, int N>
struct VectorOf {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
};
using F32 = VectorOf<float, kLanes>::type;
using I32 = VectorOf<int32_t, kLanes>::type;
using U32 = VectorOf<uint32_t, kLanes>::type;
using U64 = VectorOf<uint64_t, kLanes / 2>::type;
using F64 = VectorOf<double, kLanes / 2>::type;  // as wide as F32
using I64 = VectorOf<int64_t, kLanes / 2>::type;

template <class V, class T>
[[gnu::always_inline]] inline V load(const T* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

[[gnu::always_inline]] inline F32 load(const float* p) { return load<F32>(p); }

[[gnu::always_inline]] inline void store(float* p, F32 v) { std::memcpy(p, &v, sizeof v); }

// The first n < kLanes floats of p; the other lanes are zero. Reads nothing past them.
[[gnu::always_inline]] inline F32 load_first(const float* p, int64_t n) {
#if defined(__AVX512F__)
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
#else
  float lanes[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i] = p[i];
  return load(lanes);
#endif
}

[[gnu::always_inline]] inline void store_first(float* p, F32 v, int64_t n) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), v);
#else
  for (int64_t i = 0; i < n; ++i) p[i] = v[i];
#endif
}

// Less zero, which the compiler leaves out; plus zero, it has to add, since that turns -0 into +0.
[[gnu::always_inline]] inline F32 splat(float x) { return x - F32{}; }
[[gnu::always_inline]] inline F64 splat(double x) { return x - F64{}; }

// a * b + c, rounded once where the set has fused multiply-add (x86-64's baseline has not).
[[gnu::always_inline]] inline F32 fma(F32 a, F32 b, F32 c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(__aarch64__)
  return vfmaq_f32(c, a, b);
#else
  return a * b + c;
#endif
}

[[gnu::always_inline]] inline F64 fma(F64 a, F64 b, F64 c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_pd(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_pd(a, b, c);
#elif defined(__aarch64__)
  return vfmaq_f64(c, a, b);
#else
  return a * b + c;
#endif
}

[[gnu::always_inline]] inline F32 max(F32 a, F32 b) {
#if defined(__AVX512F__)
  return _mm512_max_ps(a, b);
#elif defined(__AVX2__)
  return _mm256_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}

[[gnu::always_inline]] inline F32 min(F32 a, F32 b) {
#if defined(__AVX512F__)
  return _mm512_min_ps(a, b);
#elif defined(__AVX2__)
  return _mm256_min_ps(a, b);
#else
  return a < b ? a : b;
#endif
}

// Remembers whether any number that it saw is NaN.
class NanSpotter {
 public:
  [[gnu::always_inline]] void see(F32 a, F32 b) {
#if defined(__AVX512F__)
    seen_ |= _mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q);
#elif defined(__AVX2__)
    seen_ = _mm256_or_ps(seen_, _mm256_cmp_ps(a, b, _CMP_UNORD_Q));
#else
    seen_ |= (a != a) | (b != b);
#endif
  }
  [[gnu::always_inline]] bool spotted() const {
#if defined(__AVX512F__)
    return seen_ != 0;
#elif defined(__AVX2__)
    return _mm256_movemask_ps(seen_) != 0;
#else
    for (int i = 0; i < kLanes; ++i) {
      if (seen_[i] != 0) return true;
    }
    return false;
#endif
  }

 private:
#if defined(__AVX512F__)
  __mmask16 seen_ = 0;
#elif defined(__AVX2__)
  __m256 seen_ = _mm256_setzero_ps();
#else
  I32 seen_ = {};
#endif
};

// Scalar helpers of our own: an inline function of the standard library, compiled here for AVX-512, might be the copy
// that the linker keeps for everybody.
[[gnu::always_inline]] inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
[[gnu::always_inline]] inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// The upper half of a vector in the place of the lower.
template <int half, class V, int... i>
[[gnu::always_inline]] inline V upper_half(V v, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(v, v, (i < half ? i + half : i)...);
}

// Folds lanes pairwise, halves first: a fixed order.
template <int half, class V, class Operation>
[[gnu::always_inline]] inline auto fold_lanes(V v, Operation operation) {
  if constexpr (half == 0) {
    return v[0];
  } else {
    constexpr int lanes = sizeof(V) / sizeof(v[0]);
    return fold_lanes<half / 2>(operation(v, upper_half<half>(v, std::make_integer_sequence<int, lanes>{})), operation);
  }
}

template <class V>
[[gnu::always_inline]] inline auto sum_lanes(V v) {
  return fold_lanes<sizeof(V) / sizeof(v[0]) / 2>(v, [](V a, V b) { return a + b; });
}

[[gnu::always_inline]] inline float max_lanes(F32 v) {
  return fold_lanes<kLanes / 2>(v, [](F32 a, F32 b) { return max(a, b); });
}

}  // namespace outpace::OUTPACE_TARGET
