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

// The product of the low half of every 64-bit lane of a with m.
[[gnu::always_inline]] inline U64 multiply_low(U64 a, uint32_t m) {
  const U64 factor = U64{} + m;
#if defined(__AVX512F__)
  return (U64)_mm512_mul_epu32((__m512i)a, (__m512i)factor);
#elif defined(__AVX2__)
  return (U64)_mm256_mul_epu32((__m256i)a, (__m256i)factor);
#else
  return (a & 0xFFFFFFFFu) * factor;
#endif
}

// The high half of every 64-bit lane, in the low one; what is in the high one does not matter. A shuffle, which other
// units of the core do than the shift beside it.
[[gnu::always_inline]] inline U64 high_half(U64 a) {
#if defined(__AVX512F__)
  return (U64)_mm512_shuffle_epi32((__m512i)a, static_cast<_MM_PERM_ENUM>(0xF5));
#elif defined(__AVX2__)
  return (U64)_mm256_shuffle_epi32((__m256i)a, 0xF5);
#else
  return a >> 32;
#endif
}

// Ten rounds of Philox on N vectors of counters: their even and their odd lanes apart, each in the low half of a 64-bit
// lane, so that a product needs no rearranging.
template <int N>
[[gnu::always_inline]] inline void philox_rounds(U32 (&c)[N][4], const NoiseKey& key) {
  U64 halves[2 * N][4];
#pragma GCC unroll 4
  for (int n = 0; n < 2 * N; ++n) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) halves[n][i] = (U64)c[n / 2][i] >> (n % 2 * 32);
  }
  uint32_t k0 = static_cast<uint32_t>(key.seed), k1 = static_cast<uint32_t>(key.seed >> 32);
#pragma GCC unroll 1
  for (int round = 0; round < 10; ++round) {
    const U64 key0 = (U64)(U32{} + k0), key1 = (U64)(U32{} + k1);
#pragma GCC unroll 4
    for (int n = 0; n < 2 * N; ++n) {
      U64(&h)[4] = halves[n];
      const U64 p0 = multiply_low(h[0], 0xD2511F53), p1 = multiply_low(h[2], 0xCD9E8D57);
      h[0] = (p1 >> 32) ^ h[1] ^ key0;
      h[2] = high_half(p0) ^ h[3] ^ key1;
      h[1] = p1;
      h[3] = p0;
    }
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) c[n][i] = (U32)((halves[2 * n][i] & 0xFFFFFFFFu) | halves[2 * n + 1][i] << 32);
  }
}

// 1 - u of random words.
[[gnu::always_inline]] inline F32 rests_of(U32 words) { return __builtin_convertvector(~words, F32) * 0x1p-32f; }

// g <= -log(1 - u), so x + g >= score needs 1 - u <= e^(x - score). Rounding is on the side of "may".
[[gnu::always_inline]] inline float slack_of(float score) { return 1e-3f + 1e-6f * __builtin_fabsf(score); }

// What 1 - u of tokens with these logits may be at most.
[[gnu::always_inline]] inline F32 bounds_of(F32 logits, float score, float slack) {
  return exp(logits - score + slack) * 1.001f;
}

// Tokens are looked at in steps, a vector of counters each; word `lane` of counter i belongs to token 4 i + lane.
constexpr int64_t kStep = 4 * kLanes;
constexpr int kStepsTogether = kLanes == 16 ? 2 : 1;  // as many as the registers hold

// Adds those of the `count` tokens of a step that may win to ids; most have none, which the smallest 1 - u tells. bound:
// that of its largest logit.
inline int64_t note_winners(const float* x, int64_t first, int64_t count, const U32 (&words)[4], float bound,
                            float score, float slack, int32_t* ids) {
  F32 smallest = splat(1.0f);
  for (const U32& word : words) smallest = min(rests_of(word), smallest);
  if (!any(smallest <= splat(bound))) return 0;
  int64_t found = 0;
  for (int64_t i = 0; i < (count + 3) / 4; ++i) {
    if (!(smallest[i] <= bound)) continue;
    const int64_t token = first + 4 * i, tokens = smaller(first + count - token, 4);
    const F32 bounds = bounds_of(load_first(x + token, tokens), score, slack);
    for (int64_t lane = 0; lane < tokens; ++lane) {
      ids[found] = static_cast<int32_t>(token + lane);
      found += rests_of(U32{} + words[lane][i])[0] <= bounds[lane];
    }
  }
  return found;
}

inline int64_t may_win(const float* x, const NoiseKey& key, int64_t begin, int64_t end, float score, int32_t* ids) {
  const float slack = slack_of(score), least = score - kLargestNoise - slack;
  U32 lanes;
  for (int i = 0; i < kLanes; ++i) lanes[i] = static_cast<uint32_t>(i);
  int64_t found = 0;
  for (int64_t part = begin; part < end; part += kLanes * kStep) {
    float best[kLanes], bounds[kLanes];  // of every step
    for (int64_t i = 0; i < kLanes; ++i) {
      const int64_t first = smaller(part + i * kStep, end);
      best[i] = largest_number(x + first, smaller(end - first, kStep));
    }
    store(bounds, bounds_of(load(best), score, slack));
    for (int64_t i = 0; i < kLanes; i += kStepsTogether) {
      bool some = false;
      for (int n = 0; n < kStepsTogether; ++n) some |= best[i + n] >= least;
      if (!some) continue;
      const int64_t first = part + i * kStep;
      U32 c[kStepsTogether][4];
#pragma GCC unroll 2
      for (int n = 0; n < kStepsTogether; ++n) {
        c[n][0] = U32{} + key.position;
        c[n][1] = lanes + static_cast<uint32_t>(first / 4 + n * kLanes);
        c[n][2] = U32{} + key.sample_index;
        c[n][3] = U32{} + key.stream;
      }
      philox_rounds(c, key);
#pragma GCC unroll 2
      for (int n = 0; n < kStepsTogether; ++n) {
        if (!(best[i + n] >= least)) continue;
        const int64_t from = first + n * kStep;
        found += note_winners(x, from, smaller(end - from, kStep), c[n], bounds[i + n], score, slack, ids + found);
      }
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
    U32 c[1][4] = {{U32{} + key.position, token >> 2, U32{} + key.sample_index, U32{} + key.stream}};
    philox_rounds(c, key);
    const U32 lane = token & 3;
    const U32 word = lane < 2 ? (lane == 0 ? c[0][0] : c[0][1]) : (lane == 2 ? c[0][2] : c[0][3]);
    const F32 rest = rests_of(word), bound = bounds_of(load_some(x + at, count), score, slack);
    for (int64_t i = 0; i < count; ++i) {
      ids[found] = static_cast<int32_t>(at + i);
      found += rest[i] <= bound[i];
    }
  });
  return found;
}

}  // namespace outpace::OUTPACE_TARGET
