// Norms, rotary embedding, activation and sums of one row. Reference: reference/network.py.
#pragma once

#include <cmath>

#include "exp.h"

namespace outpace::OUTPACE_TARGET {

// Calls body(i, count) for vectors of kLanes floats, the last perhaps shorter.
template <class Body>
[[gnu::always_inline]] inline void in_vectors(int64_t n, Body&& body) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) body(i, kLanes);
  if (i < n) body(i, n - i);
}

[[gnu::always_inline]] inline F32 load_some(const float* p, int64_t count) {
  return count == kLanes ? load(p) : load_first(p, count);
}

[[gnu::always_inline]] inline void store_some(float* p, F32 v, int64_t count) {
  if (count == kLanes) {
    store(p, v);
  } else {
    store_first(p, v, count);
  }
}

inline void rms_norm(const float* x, const float* weight, float* y, int64_t n, float eps) {
  // Four sums, so that additions need not wait for each other; vector i goes to sum i % 4.
  F32 sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    for (int s = 0; s < 4; ++s) {
      const F32 v = load(x + i + s * kLanes);
      sums[s] = fma(v, v, sums[s]);
    }
  }
  in_vectors(n - i, [&](int64_t at, int64_t count) {
    const F32 v = load_some(x + i + at, count);
    sums[at / kLanes] = fma(v, v, sums[at / kLanes]);
  });
  const float mean = sum_lanes((sums[0] + sums[1]) + (sums[2] + sums[3])) / static_cast<float>(n);
  const F32 root = splat(__builtin_sqrtf(mean + eps));
  in_vectors(n, [&](int64_t at, int64_t count) {
    store_some(y + at, load_some(x + at, count) / root * load_some(weight + at, count), count);
  });
}

inline void add(const float* a, const float* b, float* y, int64_t n) {
  in_vectors(n, [&](int64_t at, int64_t count) {
    store_some(y + at, load_some(a + at, count) + load_some(b + at, count), count);
  });
}

inline void silu_mul(const float* gate, const float* up, float* y, int64_t n) {
  in_vectors(n, [&](int64_t at, int64_t count) {
    const F32 g = load_some(gate + at, count);
    store_some(y + at, g / (exp(-g) + 1.0f) * load_some(up + at, count), count);
  });
}

// gelu(x) = x (1 + tanh(y)) / 2 = x / (1 + e^(-2y)) with y = sqrt(2 / pi) (x + 0.044715 x^3).
inline void gelu_mul(const float* gate, const float* up, float* y, int64_t n) {
  in_vectors(n, [&](int64_t at, int64_t count) {
    const F32 g = load_some(gate + at, count);
    const F32 twice = (g + g * g * g * 0.044715f) * 1.5957691216057308f;
    store_some(y + at, g / (exp(-twice) + 1.0f) * load_some(up + at, count), count);
  });
}

// g / (1 + e^(-1.702 g)) (u + 1) with g = min(gate, 7) and u = up in [-7, 7].
inline void clamped_swiglu(const float* gate, const float* up, float* y, int64_t n) {
  const F32 limit = splat(7.0f);
  in_vectors(n, [&](int64_t at, int64_t count) {
    const F32 g = min(load_some(gate + at, count), limit);
    const F32 u = max(min(load_some(up + at, count), limit), -limit);
    store_some(y + at, g / (exp(g * -1.702f) + 1.0f) * (u + 1.0f), count);
  });
}

inline void add_scaled(const float* x, float factor, float* y, int64_t n) {
  in_vectors(n, [&](int64_t at, int64_t count) {
    store_some(y + at, fma(load_some(x + at, count), splat(factor), load_some(y + at, count)), count);
  });
}

inline void scale(const float* x, float factor, float* y, int64_t n) {
  in_vectors(n, [&](int64_t at, int64_t count) { store_some(y + at, load_some(x + at, count) * factor, count); });
}

// cap tanh(x / cap), with tanh(z) = 1 - 2 / (e^(2z) + 1).
inline void soft_cap(const float* x, float cap, float* y, int64_t n) {
  in_vectors(n, [&](int64_t at, int64_t count) {
    const F32 z = load_some(x + at, count) / splat(cap);
    store_some(y + at, (splat(1.0f) - splat(2.0f) / (exp(z + z) + 1.0f)) * cap, count);
  });
}

inline void rotate(float* head, const float* cos, const float* sin, int64_t half) {
  in_vectors(half, [&](int64_t at, int64_t count) {
    const F32 a = load_some(head + at, count), b = load_some(head + half + at, count);
    const F32 c = load_some(cos + at, count), s = load_some(sin + at, count);
    store_some(head + at, fma(a, c, -(b * s)), count);
    store_some(head + half + at, fma(b, c, a * s), count);
  });
}

}  // namespace outpace::OUTPACE_TARGET
