// BF16 weights times bfloat16 activations with the CPU's dot product: one tile (16 columns), one block of rows.
//
// Reference: `linear` of src/outpace/ops/reference/ on `dequantise` of src/outpace/ops/formats.py, with x rounded to
// bfloat16. For a row and a column, one vdpbf16ps for each pair of k, in order: y += x[k+1] w[k+1], then x[k] w[k], as
// Intel's manual defines it: rounding to nearest, subnormals flushed to zero, whatever MXCSR says.
#pragma once

#include <immintrin.h>

#include <algorithm>

#include "tile.h"

namespace outpace {
namespace {

// sum + the products of two weights and two activations in every lane. In one instruction, as in simd_avx512.h.
[[gnu::always_inline]] inline __m512 dot(__m512 sum, __m512i weights, const uint32_t& activations) {
  asm("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(weights), "m"(activations));
  return sum;
}

// A TileKernel for R rows.
template <class S, int R>
void bf16_tile(const uint8_t* tile, int64_t depth, const uint8_t* block, float* y, int64_t ldy, int64_t cols) {
  __m512 sum[R];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) sum[r] = S::zero();
  const auto* x = reinterpret_cast<const uint32_t*>(block);
  const int64_t pairs = (depth + 1) / 2;
  for (int64_t first = 0; first < pairs; first += layout::kLineDwords) {
    const int64_t count = std::min(pairs - first, layout::kLineDwords);
    for (int64_t pair = 0; pair < count; ++pair) {
      __builtin_prefetch(tile + kPrefetchAhead);
      const auto weights = S::load_int(tile);
      tile += 64;
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) sum[r] = dot(sum[r], weights, x[layout::kLineDwords * r + pair]);
    }
    x += layout::kLineDwords * R;
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) store_columns<S>(y + r * ldy, 0, cols, sum[r]);
}

}  // namespace
}  // namespace outpace
