// F32, F16 and BF16 weights times float32 activations: one tile (16 columns), one block of rows.
//
// Reference: `linear` of src/outpace/ops/reference/ on `dequantise` of src/outpace/ops/formats.py. For a row and a
// column, y = fma(x[k], w[k], y) for k = 0, 1, ... (without FMA hardware: product and sum, each rounded).
#pragma once

#include <algorithm>

#include "tile.h"

namespace outpace {
namespace {

template <Format F>
constexpr int64_t kPairBytes = F == Format::F32 ? 128 : 64;  // weights of two k's

template <Format F>
[[gnu::always_inline]] inline void prefetch_pair(const uint8_t* pair) {
#pragma GCC unroll 2
  for (int64_t line = 0; line < kPairBytes<F>; line += 64) __builtin_prefetch(pair + kPrefetchAhead + line);
}

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

// Adds one k to N rows' sums; x is the first of them at this k.
template <class S, Format F, int N>
[[gnu::always_inline]] inline void add_k(const uint8_t* pair, int k, int part, const float* x,
                                         typename S::Float (&sum)[N]) {
  const auto w = load_weights<S, F>(pair, k, part);
#pragma GCC unroll 16
  for (int n = 0; n < N; ++n) sum[n] = S::multiply_add(S::splat(x[layout::kLineDwords * n]), w, sum[n]);
}

// Adds `count` k's, at most a line of activations, to the sums of rows [first, R), a few rows at a time: so many that
// products need not wait for each other, and no more than the registers hold sums for.
template <class S, Format F, int R, int first = 0>
[[gnu::always_inline]] inline void add_line(const uint8_t* pair, int64_t count, int part, const float* x,
                                            typename S::Float* y) {
  constexpr int kBatches = (R + S::kFloatRows - 1) / S::kFloatRows, N = std::min((R + kBatches - 1) / kBatches, R - first);
  typename S::Float sum[N];
#pragma GCC unroll 16
  for (int n = 0; n < N; ++n) sum[n] = y[first + n];
  const uint8_t* p = pair;
  const float* row = x + layout::kLineDwords * first;
  for (int64_t k = 0; k + 2 <= count; k += 2, p += kPairBytes<F>) {
    if constexpr (first == 0) prefetch_pair<F>(p);
    add_k<S, F, N>(p, 0, part, row + k, sum);
    add_k<S, F, N>(p, 1, part, row + k + 1, sum);
  }
  if (count % 2 != 0) add_k<S, F, N>(p, 0, part, row + count - 1, sum);
#pragma GCC unroll 16
  for (int n = 0; n < N; ++n) y[first + n] = sum[n];
  if constexpr (first + N < R) add_line<S, F, R, first + N>(pair, count, part, x, y);
}

// A TileKernel for R rows.
template <class S, Format F, int R>
void float_tile(const uint8_t* tile, int64_t depth, const uint8_t* block, float* y, int64_t ldy, int64_t cols) {
  for (int part = 0; part < kTileWidth / S::kLanes; ++part) {
    typename S::Float sum[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) sum[r] = S::zero();
    const auto* x = reinterpret_cast<const float*>(block);
    const uint8_t* pair = tile;
    for (int64_t first = 0; first < depth; first += layout::kLineDwords) {
      add_line<S, F, R>(pair, std::min(depth - first, layout::kLineDwords), part, x, sum);
      pair += layout::kLineDwords / 2 * kPairBytes<F>;
      x += layout::kLineDwords * R;
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) store_columns<S>(y + r * ldy, part, cols, sum[r]);
  }
}

}  // namespace
}  // namespace outpace
