// Quantised weights times int8 activations: two whole tiles (32 columns) at once, a block of rows.
//
// A core that loads no more than one 64-byte vector a cycle, broadcasts among them, feeds one dot product a cycle where
// each loads its own activations, and has units for two (benchmarks/LOG.md, entries 38 and 48). Here every broadcast
// serves two tiles. The sums of the rows lie in memory meanwhile; operations and their order are those of int8_tile, and
// so are the bits.
#pragma once

#include "int8_kernel.h"

namespace outpace {
namespace {

constexpr int kPairRows = 4;  // rows whose dot products take turns: 8 sums beside 16 vectors of codes

// Formats whose halves of a group have one scale, on instruction sets with a dot product of registers.
template <class S, Format F>
constexpr bool has_pair_kernel() {
  if constexpr (requires(typename S::Int v) { S::dot(v, v, v); }) {
    return !layout::is_float(F) && !layout::halves_differ(F);
  } else {
    return false;
  }
}

// Adds one group to the sums y [kPairRows][2].
template <class S, Format F>
[[gnu::always_inline]] inline void add_group_to_pair(const QuantisedRow* rows, const typename S::Int (&w)[2][8],
                                                     const Scales<S> (&scales)[2], typename S::Float (*y)[2]) {
  constexpr int N = kPairRows;
  typename S::Int dot[N][2];
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n) dot[n][0] = dot[n][1] = S::splat_int(first_sum<S, F>(rows[n], 0));
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j) {
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      const auto four = S::splat_bytes(rows[n].q + 4 * j);
      dot[n][0] = S::dot(dot[n][0], w[0][j], four);
      dot[n][1] = S::dot(dot[n][1], w[1][j], four);
    }
  }
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n) {
    const auto activation_scale = S::splat(rows[n].scale), scaled_sum = S::splat(rows[n].scaled_sum);
#pragma GCC unroll 2
    for (int t = 0; t < 2; ++t) {
      const auto numbers = S::multiply(S::from_int(dot[n][t]), activation_scale);
      auto sum = S::multiply_add(numbers, scales[t].scale, y[n][t]);
      if constexpr (layout::has_minimum(F)) sum = S::multiply_add(scales[t].minimum, scaled_sum, sum);
      y[n][t] = sum;
    }
  }
}

// Adds a unit of N groups of both tiles, `tile_bytes` apart, to n rows. Asks for the streams of both at `ahead`, some
// lines with every few rows.
template <class S, Format F, int N>
inline void add_unit_to_pair(const uint8_t* unit, int64_t tile_bytes, const uint8_t* ahead, const QuantisedRow* rows,
                             int64_t n, typename S::Float (*y)[2]) {
  constexpr int64_t codes = layout::has_super_blocks(F) ? layout::header_bytes(F) : 0;
  constexpr int64_t share = layout::unit_bytes(F, N) / N, lines = (share + 63) / 64;
  const int64_t turns = n / kPairRows, lines_a_turn = (lines + turns - 1) / turns;
  const UnitScales<S, F, N> first(unit, 0), second(unit + tile_bytes, 0);
#pragma GCC unroll 1
  for (int j = 0; j < N; ++j) {
    const uint8_t* group = unit + codes + j * layout::group_bytes(F);
    typename S::Int w[2][8];
    load_codes<S, F>(group, w[0]);
    load_codes<S, F>(group + tile_bytes, w[1]);
    const Scales<S> scales[2] = {first.group(j), second.group(j)};
    const uint8_t *next = ahead + j * share, *const end = next + share;
#pragma GCC unroll 1
    for (int64_t r = 0; r < n; r += kPairRows) {
      for (int64_t i = 0; i < lines_a_turn && next < end; ++i, next += 64) {
        __builtin_prefetch(next);
        __builtin_prefetch(next + tile_bytes);
      }
      add_group_to_pair<S, F>(rows + r, w, scales, y + r);
    }
    rows += n;
  }
}

// Adds the unit of `left` < N groups that a tile may end with.
template <class S, Format F, int N>
inline void add_last_unit_to_pair(int64_t left, const uint8_t* unit, int64_t tile_bytes, const uint8_t* ahead,
                                  const QuantisedRow* rows, int64_t n, typename S::Float (*y)[2]) {
  if constexpr (N > 1) {
    if (left == N - 1) return add_unit_to_pair<S, F, N - 1>(unit, tile_bytes, ahead, rows, n, y);
    add_last_unit_to_pair<S, F, N - 1>(left, unit, tile_bytes, ahead, rows, n, y);
  }
}

// A PairKernel.
template <class S, Format F>
void int8_pair(const uint8_t* tile, int64_t tile_bytes, int64_t depth, const uint8_t* block, int64_t n, float* y,
               int64_t ldy) {
  static_assert(S::kLanes == kTileWidth && S::kRowBlock % kPairRows == 0);
  constexpr int kUnit = layout::unit_groups(F);
  const int64_t groups = depth / layout::kGroup;
  typename S::Float sums[S::kRowBlock][2];
  for (int64_t r = 0; r < n; ++r) sums[r][0] = sums[r][1] = S::zero();
  // Behind the first tile's end follows the next pair: the second tile is on its way already.
  const auto ahead_of = [&](const uint8_t* unit) {
    const uint8_t* ahead = unit + kPrefetchAhead;
    return ahead < tile + tile_bytes ? ahead : ahead + tile_bytes;
  };
  const auto* rows = reinterpret_cast<const QuantisedRow*>(block);
  const uint8_t* unit = tile;
  for (int64_t g = 0; g + kUnit <= groups; g += kUnit) {
    add_unit_to_pair<S, F, kUnit>(unit, tile_bytes, ahead_of(unit), rows, n, sums);
    unit += layout::unit_bytes(F, kUnit);
    rows += kUnit * n;
  }
  if constexpr (!layout::has_super_blocks(F)) {
    if (groups % kUnit != 0) {
      add_last_unit_to_pair<S, F, kUnit>(groups % kUnit, unit, tile_bytes, ahead_of(unit), rows, n, sums);
    }
  }
  for (int64_t r = 0; r < n; ++r) {
    S::store(y + r * ldy, sums[r][0]);
    S::store(y + r * ldy + kTileWidth, sums[r][1]);
  }
}

}  // namespace
}  // namespace outpace
