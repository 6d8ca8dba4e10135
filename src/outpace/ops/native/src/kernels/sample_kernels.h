// Passes over a row of logits: its largest, who is near it, sums of exponentials, noise. Reference:
// reference/sample.py.
#pragma once

#include "elementwise.h"

namespace outpace::OUTPACE_TARGET {

inline float largest_number(const float* x, int64_t n) {
  F32 best[4];
  for (F32& b : best) b = splat(-__builtin_inff());
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    for (int s = 0; s < 4; ++s) best[s] = max(load(x + i + s * kLanes), best[s]);
  }
  float result = max_lanes(max(max(best[0], best[1]), max(best[2], best[3])));
  for (; i < n; ++i) result = x[i] > result ? x[i] : result;
  return result;
}

inline float largest(const float* x, int64_t n) {
  F32 best[4];
  for (F32& b : best) b = splat(-__builtin_inff());
  NanSpotter nan;
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    F32 v[4];
    for (int s = 0; s < 4; ++s) {
      v[s] = load(x + i + s * kLanes);
      best[s] = max(v[s], best[s]);
    }
    nan.see(v[0], v[1]);
    nan.see(v[2], v[3]);
  }
  float result = max_lanes(max(max(best[0], best[1]), max(best[2], best[3])));
  bool some = nan.spotted();
  for (; i < n; ++i) {
    some |= x[i] != x[i];
    result = x[i] > result ? x[i] : result;
  }
  return some ? __builtin_nanf("") : result;
}

inline float divide(const float* x, float divisor, float* y, int64_t n) {
  F32 best = splat(-__builtin_inff());
  float result = -__builtin_inff();
  NanSpotter nan;
  in_vectors(n, [&](int64_t at, int64_t count) {
    const F32 v = load_some(x + at, count) / divisor;
    store_some(y + at, v, count);
    nan.see(v, v);
    if (count == kLanes) {
      best = max(v, best);
    } else {
      result = largest_number(y + at, count);
    }
  });
  return nan.spotted() ? __builtin_nanf("") : max_lanes(max(splat(result), best));
}

[[gnu::always_inline]] inline bool any(I32 mask) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask((__m512i)mask) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps((__m256)mask) != 0;
#else
  const auto halves = (VectorOf<int64_t, 2>::type)mask;
  return (halves[0] | halves[1]) != 0;
#endif
}

inline int64_t at_least(const float* x, int64_t n, float threshold, int32_t* ids) {
  int64_t found = 0;
  const auto note = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      ids[found] = static_cast<int32_t>(i);
      found += x[i] >= threshold;
    }
  };
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    const F32 low = max(load(x + i), load(x + i + kLanes)),
              high = max(load(x + i + 2 * kLanes), load(x + i + 3 * kLanes));
    if (any(max(low, high) >= threshold)) note(i, i + 4 * kLanes);
  }
  note(i, n);
  return found;
}

inline double exp_sum(const float* x, double shift, int64_t n) {
  constexpr int lanes = kLanes / 2;
  using Half = VectorOf<float, lanes>::type;
  F64 sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    for (int s = 0; s < 4; ++s) sums[s] += exp(__builtin_convertvector(load<Half>(x + i + s * lanes), F64) - shift);
  }
  double total = sum_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (; i < n; ++i) total += exp(splat(x[i] - shift))[0];
  return total;
}

inline double rough_exp_sum(const float* x, float shift, int64_t n) {
  using Half = VectorOf<float, kLanes / 2>::type;
  F64 sums[2] = {};
  in_vectors(n, [&](int64_t at, int64_t count) {
    const F32 terms = exp(load_some(x + at, count) - shift);
    Half low, high;
    std::memcpy(&low, &terms, sizeof low);
    std::memcpy(&high, reinterpret_cast<const char*>(&terms) + sizeof low, sizeof high);
    if (count == kLanes) {
      sums[0] += __builtin_convertvector(low, F64);
      sums[1] += __builtin_convertvector(high, F64);
    } else {
      for (int64_t i = 0; i < count; ++i) sums[0][0] += terms[i];
    }
  });
  return sum_lanes(sums[0] + sums[1]);
}

// High and low words of a * m.
[[gnu::always_inline]] inline void multiply_wide(U32 a, uint32_t m, U32& high, U32& low) {
  const U64 even = (U64)a & 0xFFFFFFFFu, odd = (U64)a >> 32;
  const U64 factor = U64{} + m;
#if defined(__AVX512F__)
  const U64 p = (U64)_mm512_mul_epu32((__m512i)even, (__m512i)factor),
            q = (U64)_mm512_mul_epu32((__m512i)odd, (__m512i)factor);
#elif defined(__AVX2__)
  const U64 p = (U64)_mm256_mul_epu32((__m256i)even, (__m256i)factor),
            q = (U64)_mm256_mul_epu32((__m256i)odd, (__m256i)factor);
#else
  const U64 p = even * factor, q = odd * factor;
#endif
  low = (U32)((p & 0xFFFFFFFFu) | (q << 32));
  high = (U32)((p >> 32) | (q >> 32 << 32));
}

// Ten rounds of Philox on counters in lanes.
[[gnu::always_inline]] inline void philox_rounds(U32 (&c)[4], const NoiseKey& key) {
  U32 k0 = U32{} + static_cast<uint32_t>(key.seed), k1 = U32{} + static_cast<uint32_t>(key.seed >> 32);
  for (int round = 0; round < 10; ++round) {
    U32 high0, low0, high1, low1;
    multiply_wide(c[0], 0xD2511F53, high0, low0);
    multiply_wide(c[2], 0xCD9E8D57, high1, low1);
    c[0] = high1 ^ c[1] ^ k0;
    c[2] = high0 ^ c[3] ^ k1;
    c[1] = low1;
    c[3] = low0;
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
}

// g <= -log(1 - u), so x + g >= score needs 1 - u <= e^(x - score). Rounding is on the side of "may".
[[gnu::always_inline]] inline float slack_of(float score) { return 1e-3f + 1e-6f * __builtin_fabsf(score); }

inline int64_t may_win(const float* x, const NoiseKey& key, int64_t begin, int64_t end, float score, int32_t* ids) {
  const float slack = slack_of(score);
  int64_t found = 0;
  for (int64_t first = begin; first < end; first += 4 * kLanes) {
    const int64_t count = smaller(end - first, 4 * kLanes);
    const float best = largest_number(x + first, count);
    if (best < score - kLargestNoise - slack) continue;
    U32 c[4] = {};
    U32 counters;
    for (int i = 0; i < kLanes; ++i) counters[i] = static_cast<uint32_t>(first / 4 + i);
    c[1] = counters;
    c[0] = U32{} + key.position;
    c[2] = U32{} + key.sample_index;
    c[3] = U32{} + key.stream;
    philox_rounds(c, key);
    // Most stretches have no token that may win, which the smallest 1 - u tells.
    F32 rests[4], smallest = splat(1.0f);
    for (int lane = 0; lane < 4; ++lane) {
      rests[lane] = __builtin_convertvector(~c[lane], F32) * 0x1p-32f;
      smallest = min(rests[lane], smallest);
    }
    const auto bound = [&](F32 logit) { return exp(logit - score + slack) * 1.001f; };
    if (-max_lanes(-smallest) > bound(splat(best))[0]) continue;
    // Word `lane` of counter i belongs to token 4 i + lane.
    for (int64_t i = 0; i < count; ++i) {
      ids[found] = static_cast<int32_t>(first + i);
      found += rests[i % 4][i / 4] <= bound(splat(x[first + i]))[0];
    }
  }
  return found;
}

inline int64_t may_win_of(const float* x, const int32_t* tokens, const NoiseKey& key, int64_t n, float score,
                          int32_t* ids) {
  const float slack = slack_of(score);
  int64_t found = 0;
  in_vectors(n, [&](int64_t at, int64_t count) {
    if (largest_number(x + at, count) < score - kLargestNoise - slack) return;
    U32 token{};
    std::memcpy(&token, tokens + at, static_cast<size_t>(count) * sizeof *tokens);
    U32 c[4] = {U32{} + key.position, token >> 2, U32{} + key.sample_index, U32{} + key.stream};
    philox_rounds(c, key);
    const U32 lane = token & 3;
    const U32 word = lane < 2 ? (lane == 0 ? c[0] : c[1]) : (lane == 2 ? c[2] : c[3]);
    const F32 rest = __builtin_convertvector(~word, F32) * 0x1p-32f;
    const F32 bound = exp(load_some(x + at, count) - score + slack) * 1.001f;
    for (int64_t i = 0; i < count; ++i) {
      ids[found] = static_cast<int32_t>(at + i);
      found += rest[i] <= bound[i];
    }
  });
  return found;
}

}  // namespace outpace::OUTPACE_TARGET
