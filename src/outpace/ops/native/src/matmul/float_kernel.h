// F32, F16 and BF16 weights times float32 activations: one tile (16 columns), one block of rows.
//
// Reference: `linear` of src/outpace/ops/reference/ on `dequantise` of src/outpace/ops/formats.py. For a row and a
// column, y = fma(x[k], w[k], y) for k = 0, 1, ... (without FMA hardware: product and sum, each rounded).
#pragma once

#include <algorithm>

#include "tile.h"

namespace outpace {
namespace {

// Columns of weights at k (0 or 1) of a pair of k's.
template <class S, Format F>
[[gnu::always_inline]] inline typename S::Float load_weights(const uint8_t* pair, int k, int part) {
  if constexpr (F == Format::F32) return S::load(pair + 64 * k + 4 * S::kLanes * part);
  if constexpr (F == Format::F16) return S::from_halves(pair + 32 * k + 2 * S::kLanes * part);
  if constexpr (F == Format::BF16) {
    const auto both = S::load_int(pair + 4 * S::kLanes * part);
    return k == 0 ? S::from_bf16_low(both) : S::from_bf16_high(both);
  }
}

// Adds one k to all sums: x is row 0 at this k.
template <class S, Format F, int R, int P>
[[gnu::always_inline]] inline void add_k(const uint8_t* pair, int k, int part, const float* x,
                                         typename S::Float (&sum)[P][R]) {
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) {
    const auto w = load_weights<S, F>(pair, k, part + p);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) sum[p][r] = S::multiply_add(S::splat(x[layout::kLineDwords * r]), w, sum[p][r]);
  }
}

// A TileKernel for R rows.
template <class S, Format F, int R>
void float_tile(const uint8_t* tile, int64_t depth, const uint8_t* block, float* y, int64_t ldy, int64_t cols) {
  constexpr int P = S::kFloatParts;
  constexpr int64_t kPairBytes = F == Format::F32 ? 128 : 64;
  for (int part = 0; part < kTileWidth / S::kLanes; part += P) {
    typename S::Float sum[P][R];
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) sum[p][r] = S::zero();
    }
    const auto* x = reinterpret_cast<const float*>(block);
    const uint8_t* pair = tile;
    for (int64_t first = 0; first < depth; first += layout::kLineDwords) {
      const int64_t count = std::min(depth - first, layout::kLineDwords);
      for (int64_t k = 0; k + 2 <= count; k += 2) {
        __builtin_prefetch(pair + kPrefetchAhead);
        if constexpr (kPairBytes > 64) __builtin_prefetch(pair + kPrefetchAhead + 64);
        add_k<S, F, R, P>(pair, 0, part, x + k, sum);
        add_k<S, F, R, P>(pair, 1, part, x + k + 1, sum);
        pair += kPairBytes;
      }
      if (count % 2 != 0) add_k<S, F, R, P>(pair, 0, part, x + count - 1, sum);
      x += layout::kLineDwords * R;
    }
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) store_columns<S>(y + r * ldy, part + p, cols, sum[p][r]);
    }
  }
}

}  // namespace
}  // namespace outpace
