// Quantised weights times int8 activations: one tile (16 columns), one block of rows.
//
// Reference: `linear` of src/outpace/ops/reference/ on `dequantise` of src/outpace/ops/formats.py, with x rounded to
// int8 per group of 32. For a row and a column, K is summed group by group, in order:
//
//     dot   = sum of code * q            exact, int32
//     y     = fma(float(dot) * activation_scale, scale, y)
//     y     = fma(activation_scale * sum of q, minimum, y)       formats with a minimum
//
// and for Q6_K, with two scales to a group, y = fma(fma(dot1, scale1, dot0 * scale0), activation_scale, y).
// Nothing depends on which other rows and columns are in flight, so the result does not either.
#pragma once

#include <algorithm>

#include "tile.h"

namespace outpace {
namespace {

using layout::QuantisedRow;

// The eight vectors of codes of a group.
template <class S, Format F>
[[gnu::always_inline]] inline void load_codes(const uint8_t* codes, typename S::Int (&w)[8]) {
  using Int = typename S::Int;
  if constexpr (layout::group_bytes(F) == 512) {
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) w[j] = S::load_int(codes + 64 * j);
    return;
  }
  const Int nibble = S::splat_int(0x0F0F0F0F), none = S::splat_int(0);
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const Int q = S::load_int(codes + 64 * j);
    w[j] = S::merge(none, q, nibble);
    w[j + 4] = S::merge(none, S::template shift_right<4>(q), nibble);
  }
  if constexpr (layout::high_bits(F) == 1) {
    const Int h = S::load_int(codes + 256), bit = S::splat_int(0x10101010);
    w[0] = S::merge(w[0], S::template shift_left<4>(h), bit);
    w[1] = S::merge(w[1], S::template shift_left<3>(h), bit);
    w[2] = S::merge(w[2], S::template shift_left<2>(h), bit);
    w[3] = S::merge(w[3], S::template shift_left<1>(h), bit);
    w[4] = S::merge(w[4], h, bit);
    w[5] = S::merge(w[5], S::template shift_right<1>(h), bit);
    w[6] = S::merge(w[6], S::template shift_right<2>(h), bit);
    w[7] = S::merge(w[7], S::template shift_right<3>(h), bit);
  }
  if constexpr (layout::high_bits(F) == 2) {
    const Int bits = S::splat_int(0x30303030);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const Int h = S::load_int(codes + 256 + 64 * half);
      w[4 * half] = S::merge(w[4 * half], S::template shift_left<4>(h), bits);
      w[4 * half + 1] = S::merge(w[4 * half + 1], S::template shift_left<2>(h), bits);
      w[4 * half + 2] = S::merge(w[4 * half + 2], h, bits);
      w[4 * half + 3] = S::merge(w[4 * half + 3], S::template shift_right<2>(h), bits);
    }
  }
}

// Scales of a group's columns; `second` is that of k >= 16 (Q6_K only).
template <class S>
struct Scales {
  typename S::Float scale, second, minimum;
};

// Scales of a unit of N groups, which stand after the codes, or before them (K-quants).
template <class S, Format F, int N>
class UnitScales {
  using Float = typename S::Float;

 public:
  UnitScales(const uint8_t* unit, int part) : unit_(unit), part_(part) {
    if constexpr (F == Format::Q6_K) {
      d_ = S::from_halves(unit + 256 + 2 * S::kLanes * part);
    } else if constexpr (layout::is_k_quant(F)) {
      d_ = S::from_halves(unit + 2 * S::kLanes * part);
      d_minimum_ = S::multiply(S::splat(-1.0F), S::from_halves(unit + layout::kHalves + 2 * S::kLanes * part));
    }
  }

  [[gnu::always_inline]] Scales<S> group(int j) const {
    if constexpr (F == Format::Q6_K) {
      const uint8_t* p = unit_ + 32 * j + S::kLanes * part_;
      return {S::multiply(d_, S::from_signed_bytes(p)), S::multiply(d_, S::from_signed_bytes(p + 16)), S::zero()};
    } else if constexpr (layout::is_k_quant(F)) {
      const uint8_t* p = unit_ + 64 + 16 * j + S::kLanes * part_;
      return {S::multiply(d_, S::from_unsigned_bytes(p)), S::zero(),
              S::multiply(d_minimum_, S::from_unsigned_bytes(p + 128))};
    } else {
      const uint8_t* p = unit_ + N * layout::group_bytes(F) + layout::kHalves * j + 2 * S::kLanes * part_;
      if constexpr (layout::has_minimum(F)) {
        return {S::from_halves(p), S::zero(), S::from_halves(p + N * layout::kHalves)};
      } else {
        return {S::from_halves(p), S::zero(), S::zero()};
      }
    }
  }

 private:
  const uint8_t* unit_;
  int part_;
  Float d_, d_minimum_;
};

// Where a row's dot products start, so that they end as if the codes had no offset.
template <class S, Format F>
[[gnu::always_inline]] inline int32_t first_sum(const QuantisedRow& row, int half) {
  if constexpr (F == Format::Q8_0 && S::kSignedCodes) return 0;
  if constexpr (layout::code_offset(F) == 8) return row.minus_sum_8;
  if constexpr (layout::code_offset(F) == 16) return row.minus_sum_16;
  if constexpr (layout::code_offset(F) == 128) return row.minus_sum_128;
  if constexpr (layout::code_offset(F) == 32) return row.minus_half_32[half];
  return 0;
}

// The lines of the stream of weights that one group asks for, kPrefetchAhead bytes from now. Call `turn` of `turns`
// asks for every turns-th: requests in a burst would wait for each other.
template <int64_t Bytes, int turn, int turns>
[[gnu::always_inline]] inline void prefetch_share(const uint8_t* next) {
#pragma GCC unroll 16
  for (int64_t line = turn; line * 64 < Bytes; line += turns) __builtin_prefetch(next + 64 * line);
}

// Adds one group to N rows' accumulators. The rows take turns, so that their chains of dot products overlap.
template <class S, Format F, int N>
[[gnu::always_inline]] inline void add_group(const QuantisedRow* rows, const typename S::Int (&w)[8],
                                             const Scales<S>& scales, typename S::Float* y) {
  using Float = typename S::Float;
  typename S::template Dot<layout::code_bits(F)> dot[N];
  Float first[N];
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) dot[n].start(first_sum<S, F>(rows[n], 0));
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j) {
    if constexpr (F == Format::Q6_K) {
      if (j == 4) {
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) {
          first[n] = S::multiply(S::from_int(dot[n].sum()), scales.scale);
          dot[n].start(first_sum<S, F>(rows[n], 1));
        }
      }
    }
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) dot[n].add(j, w[j], rows[n].q + 4 * j);
  }
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) {
    const Float numbers = S::from_int(dot[n].sum()), activation_scale = S::splat(rows[n].scale);
    if constexpr (F == Format::Q6_K) {
      y[n] = S::multiply_add(S::multiply_add(numbers, scales.second, first[n]), activation_scale, y[n]);
    } else {
      y[n] = S::multiply_add(S::multiply(numbers, activation_scale), scales.scale, y[n]);
    }
    if constexpr (layout::has_minimum(F)) y[n] = S::multiply_add(scales.minimum, S::splat(rows[n].scaled_sum), y[n]);
  }
}

// Adds one group to rows [first, R), a few at a time. `next` is where its share of prefetching starts.
template <class S, Format F, int R, int64_t Bytes, int first = 0>
[[gnu::always_inline]] inline void add_group_to_rows(const QuantisedRow* rows, const typename S::Int (&w)[8],
                                                     const Scales<S>& scales, typename S::Float* y,
                                                     const uint8_t* next) {
  constexpr int most = S::kRowsTogether;
  prefetch_share<Bytes, first / most, (R + most - 1) / most>(next);
  add_group<S, F, std::min(R - first, most)>(rows + first, w, scales, y + first);
  if constexpr (first + most < R) add_group_to_rows<S, F, R, Bytes, first + most>(rows, w, scales, y, next);
}

// Adds a unit of N groups to R rows.
template <class S, Format F, int R, int N>
[[gnu::always_inline]] inline void add_unit(const uint8_t* unit, const QuantisedRow* rows, int part,
                                            typename S::Float* y) {
  constexpr int64_t codes = layout::is_k_quant(F) ? layout::kSuperHeader : 0;
  constexpr int64_t share = layout::unit_bytes(F, N) / N;
  const UnitScales<S, F, N> scales(unit, part);
#pragma GCC unroll 1
  for (int j = 0; j < N; ++j) {
    typename S::Int w[8];
    load_codes<S, F>(unit + codes + j * layout::group_bytes(F) + 4 * S::kLanes * part, w);
    add_group_to_rows<S, F, R, share>(rows + j * R, w, scales.group(j), y, unit + j * share + kPrefetchAhead);
  }
}

// A TileKernel for R rows.
template <class S, Format F, int R>
void int8_tile(const uint8_t* tile, int64_t depth, const uint8_t* block, float* y, int64_t ldy, int64_t cols) {
  constexpr int kUnit = layout::unit_groups(F);
  const int64_t groups = depth / layout::kGroup;
  for (int part = 0; part < kTileWidth / S::kLanes; ++part) {
    typename S::Float sum[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) sum[r] = S::zero();
    const auto* rows = reinterpret_cast<const QuantisedRow*>(block);
    const uint8_t* unit = tile;
    for (int64_t g = 0; g + kUnit <= groups; g += kUnit) {
      add_unit<S, F, R, kUnit>(unit, rows, part, sum);
      unit += layout::unit_bytes(F, kUnit);
      rows += kUnit * R;
    }
    if constexpr (!layout::is_k_quant(F)) {
      if (groups % kUnit != 0) add_unit<S, F, R, 1>(unit, rows, part, sum);
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) store_columns<S>(y + r * ldy, part, cols, sum[r]);
  }
}

}  // namespace
}  // namespace outpace
