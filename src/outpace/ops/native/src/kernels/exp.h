// e^x of our own: the same bits in every lane, in vector tails, on every thread. Reference: np.exp.
#pragma once

#include "simd.h"

namespace outpace::OUTPACE_TARGET {

// e^x within 1.5 ulp for x in [-86.5, 88]; 0 below (results under 3e-38); clamped above.
// x = n ln 2 + r, |r| <= ln 2 / 2, ln 2 in two parts; polynomial of Cephes' expf.
[[gnu::always_inline]] inline F32 exp(F32 x) {
  constexpr float lowest = -86.5f, highest = 88.0f, round = 12582912.0f;  // 1.5 * 2^23: adding it rounds to integers
  const F32 clamped = max(min(x, splat(highest)), splat(lowest));
  const F32 shifted = fma(clamped, splat(1.44269504f), splat(round));
  const F32 n = shifted - round;
  F32 r = fma(n, splat(-0.693359375f), clamped);
  r = fma(n, splat(2.12194440e-4f), r);
  F32 p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  p = fma(p, r * r, r) + 1.0f;
  const F32 scaled = (F32)((U32)p + ((U32)shifted << 23));
  return x < lowest ? F32{} : scaled;
}

// e^x for x <= 0, with half the instructions: within 2 ulp for x in [-10, 0], a relative error of 4e-7 down to -86.5, 0
// below. Polynomial of our own: minimax of the relative error (1.9e-9) on |r| <= ln 2 / 2.
[[gnu::always_inline]] inline F32 exp_of_negative(F32 x) {
  constexpr float lowest = -86.5f, round = 12582912.0f;
  const F32 shifted = fma(max(x, splat(lowest)), splat(1.44269504f), splat(round));
  const F32 r = fma(shifted - round, splat(-0.693147182f), x);
  F32 p = splat(1.3836742e-3f);
  p = fma(p, r, splat(8.3748987e-3f));
  p = fma(p, r, splat(4.1668233e-2f));
  p = fma(p, r, splat(1.6666420e-1f));
  p = fma(p, r, splat(4.9999991e-1f));
  p = fma(p, r, splat(1.0f));
  p = fma(p, r, splat(1.0f));
  const F32 scaled = (F32)((U32)p + ((U32)shifted << 23));
  return x < lowest ? F32{} : scaled;
}

// e^x in double within 1 ulp or so for x in [-700, 0]; 0 below. Degree 13 Taylor on |r| <= ln 2 / 2: error < 2^-58.
[[gnu::always_inline]] inline F64 exp(F64 x) {
  constexpr double lowest = -700.0, round = 6755399441055744.0;  // 1.5 * 2^52
  const F64 clamped = x < lowest ? splat(lowest) : x;
  const F64 shifted = fma(clamped, splat(1.4426950408889634), splat(round));
  const F64 n = shifted - round;
  F64 r = fma(n, splat(-6.93147180369123816490e-01), clamped);
  r = fma(n, splat(-1.90821492927058770002e-10), r);
  F64 p = splat(1.0 / 6227020800.0);
  constexpr double inverse_factorials[] = {1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880,
                                           1.0 / 40320,     1.0 / 5040,     1.0 / 720,     1.0 / 120,
                                           1.0 / 24,        1.0 / 6,        0.5,           1.0};
  for (const double c : inverse_factorials) p = fma(p, r, splat(c));
  p = fma(p, r, splat(1.0));
  const F64 scaled = (F64)((I64)p + ((I64)shifted << 52));
  return x < lowest ? F64{} : scaled;
}

}  // namespace outpace::OUTPACE_TARGET
