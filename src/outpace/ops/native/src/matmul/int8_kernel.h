// Quantised weights times int8 activations: one tile (16 columns), one block of rows.
//
// Reference: `linear` of src/outpace/ops/reference/ on `dequantise` of src/outpace/ops/formats.py, with x rounded to
// int8 per group of 32. For a row and a column, K is summed group by group, in order:
//
//     dot   = sum of code * q            exact, int32
//     y     = fma(float(dot) * activation_scale, scale, y)
//     y     = fma(activation_scale * sum of q, minimum, y)       formats with a minimum
//
// and where the halves of a group have scales of their own, y = fma(fma(dot1, scale1, dot0 * scale0), activation_scale,
// y); where they have minimums too (Q2_K), y = fma(minimum1, activation_scale * sum of q, y), then y = fma(minimum0 -
// minimum1, activation_scale * sum of q[0..15], y).
// Nothing depends on which other rows and columns are in flight, so the result does not either.
#pragma once

#include <algorithm>
#include <utility>

#include "tile.h"

namespace outpace {
namespace {

using layout::QuantisedRow;

// v * 2^N, the bits that leave a dword lost.
template <class S, int N>
[[gnu::always_inline]] inline typename S::Int shifted(typename S::Int v) {
  if constexpr (N >= 0) return S::template shift_left<N>(v);
  if constexpr (N < 0) return S::template shift_right<-N>(v);
}

// Vector J of codes that have two low bits, and Q3_K's third bit, in their place above code_shift.
template <class S, Format F, int J>
[[gnu::always_inline]] inline typename S::Int load_pairs(const uint8_t* codes) {
  constexpr int shift = layout::code_shift(F);
  const auto low = shifted<S, shift - 2 * (J % 4)>(S::load_int(codes + 64 * (J / 4)));
  const auto pairs = S::merge(S::splat_int(0), low, S::splat_int(0x03030303 << shift));
  if constexpr (layout::high_bits(F) == 0) return pairs;
  const auto high = shifted<S, shift + 2 - J>(S::load_int(codes + layout::high_place(F)));
  return S::merge(pairs, high, S::splat_int(0x04040404 << shift));
}

template <class S, Format F, int... J>
[[gnu::always_inline]] inline void load_all_pairs(const uint8_t* codes, typename S::Int (&w)[8],
                                                  std::integer_sequence<int, J...>) {
  ((w[J] = load_pairs<S, F, J>(codes)), ...);
}

// The eight vectors of codes of a group.
template <class S, Format F>
[[gnu::always_inline]] inline void load_codes(const uint8_t* codes, typename S::Int (&w)[8]) {
  using Int = typename S::Int;
  if constexpr (layout::low_bits(F) == 8) {
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) w[j] = S::load_int(codes + 64 * j);
    return;
  }
  if constexpr (layout::low_bits(F) == 2) return load_all_pairs<S, F>(codes, w, std::make_integer_sequence<int, 8>());
  const Int nibble = S::splat_int(0x0F0F0F0F), none = S::splat_int(0);
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const Int q = S::load_int(codes + 64 * j);
    w[j] = S::merge(none, q, nibble);
    w[j + 4] = S::merge(none, S::template shift_right<4>(q), nibble);
  }
  if constexpr (layout::has_table(F)) {
    static constexpr layout::Table table = layout::table(F);
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) w[j] = S::look_up(table.code, w[j]);
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

// Scales and minimums of a group's columns, and those of its second half (`difference`: by how much its minimum is
// larger) where the halves differ.
template <class S>
struct Scales {
  typename S::Float scale, minimum = S::zero(), second = S::zero(), difference = S::zero();
};

// Scales of a unit of N groups, which stand after the codes, or before them (units of 256).
template <class S, Format F, int N>
class UnitScales {
  using Float = typename S::Float;

 public:
  UnitScales(const uint8_t* unit, int part) : unit_(unit), part_(part) {
    if constexpr (layout::has_super_blocks(F)) {
      const uint8_t* d = unit + layout::d_place(F) + 2 * S::kLanes * part;
      d_ = S::from_halves(d);
      if constexpr (layout::code_shift(F) != 0) d_ = S::multiply(d_, S::splat(1.0F / (1 << layout::code_shift(F))));
      if constexpr (layout::has_minimum(F)) {
        d_minimum_ = S::multiply(S::splat(-1.0F), S::from_halves(d + layout::kHalves));
      }
    }
  }

  [[gnu::always_inline]] Scales<S> group(int j) const {
    if constexpr (F == Format::Q6_K) {
      const uint8_t* p = unit_ + 32 * j + S::kLanes * part_;
      return {.scale = S::multiply(d_, S::from_signed_bytes(p)),
              .second = S::multiply(d_, S::from_signed_bytes(p + 16))};
    } else if constexpr (F == Format::Q2_K) {
      const uint8_t* p = unit_ + 32 * j + S::kLanes * part_;
      const auto first = S::widen(p), second = S::widen(p + 16);
      const Float minimum = S::multiply(d_minimum_, S::from_int(S::template shift_right<4>(first)));
      const Float further = S::multiply(d_minimum_, S::from_int(S::template shift_right<4>(second)));
      return {.scale = S::multiply(d_, S::from_int(S::bit_and(first, S::splat_int(15)))),
              .minimum = further,
              .second = S::multiply(d_, S::from_int(S::bit_and(second, S::splat_int(15)))),
              .difference = S::multiply_add(S::splat(-1.0F), further, minimum)};
    } else if constexpr (F == Format::Q3_K) {
      const auto low = S::widen(unit_ + 16 * j + S::kLanes * part_);
      auto high = S::widen(unit_ + 128 + 16 * (j / 2) + S::kLanes * part_);
      if (j % 2 != 0) high = S::template shift_right<4>(high);
      return {.scale = S::multiply(d_, six_bits(low, S::template shift_left<4>(high))),
              .second = S::multiply(d_, six_bits(S::template shift_right<4>(low), S::template shift_left<2>(high)))};
    } else if constexpr (F == Format::IQ4_XS) {
      return {.scale = S::multiply(d_, S::from_signed_bytes(unit_ + 16 * j + S::kLanes * part_))};
    } else if constexpr (layout::has_super_blocks(F)) {
      const uint8_t* p = unit_ + 64 + 16 * j + S::kLanes * part_;
      return {.scale = S::multiply(d_, S::from_unsigned_bytes(p)),
              .minimum = S::multiply(d_minimum_, S::from_unsigned_bytes(p + 128))};
    } else if constexpr (F == Format::MXFP4) {
      return {.scale = S::from_exponents(unit_ + N * layout::group_bytes(F) + 16 * j + S::kLanes * part_)};
    } else {
      const uint8_t* p = unit_ + N * layout::group_bytes(F) + layout::kHalves * j + 2 * S::kLanes * part_;
      if constexpr (layout::has_minimum(F)) {
        return {.scale = S::from_halves(p), .minimum = S::from_halves(p + N * layout::kHalves)};
      } else {
        return {.scale = S::from_halves(p)};
      }
    }
  }

 private:
  // Four low bits and two above them, less 32.
  static Float six_bits(typename S::Int low, typename S::Int high) {
    const auto bits = S::merge(S::bit_and(low, S::splat_int(15)), high, S::splat_int(48));
    return S::from_int(S::add_int(bits, S::splat_int(-32)));
  }

  const uint8_t* unit_;
  int part_;
  Float d_, d_minimum_;
};

// Where a row's dot products start, so that they end as if the codes had no offset.
template <class S, Format F>
[[gnu::always_inline]] inline int32_t first_sum(const QuantisedRow& row, int half) {
  if constexpr (layout::code_bits(F) == 8 && S::kSignedCodes) return 0;
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
  typename S::template Dot<layout::code_bits(F), layout::halves_differ(F) ? 4 : 8> dot[N];
  Float first[N];
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) dot[n].start(first_sum<S, F>(rows[n], 0));
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j) {
    if constexpr (layout::halves_differ(F)) {
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
    if constexpr (layout::halves_differ(F)) {
      y[n] = S::multiply_add(S::multiply_add(numbers, scales.second, first[n]), activation_scale, y[n]);
    } else {
      y[n] = S::multiply_add(S::multiply(numbers, activation_scale), scales.scale, y[n]);
    }
    if constexpr (layout::has_minimum(F)) y[n] = S::multiply_add(scales.minimum, S::splat(rows[n].scaled_sum), y[n]);
    if constexpr (layout::has_minimum(F) && layout::halves_differ(F)) {
      y[n] = S::multiply_add(scales.difference, S::splat(rows[n].scaled_low), y[n]);
    }
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
  constexpr int64_t codes = layout::has_super_blocks(F) ? layout::header_bytes(F) : 0;
  constexpr int64_t share = layout::unit_bytes(F, N) / N;
  const UnitScales<S, F, N> scales(unit, part);
#pragma GCC unroll 1
  for (int j = 0; j < N; ++j) {
    typename S::Int w[8];
    load_codes<S, F>(unit + codes + j * layout::group_bytes(F) + 4 * S::kLanes * part, w);
    add_group_to_rows<S, F, R, share>(rows + j * R, w, scales.group(j), y, unit + j * share + kPrefetchAhead);
  }
}

// Adds the unit of `left` < N groups that a tile may end with.
template <class S, Format F, int R, int N>
[[gnu::always_inline]] inline void add_last_unit(int64_t left, const uint8_t* unit, const QuantisedRow* rows, int part,
                                                 typename S::Float* y) {
  if constexpr (N > 1) {
    if (left == N - 1) return add_unit<S, F, R, N - 1>(unit, rows, part, y);
    add_last_unit<S, F, R, N - 1>(left, unit, rows, part, y);
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
    if constexpr (!layout::has_super_blocks(F)) {
      if (groups % kUnit != 0) add_last_unit<S, F, R, kUnit>(groups % kUnit, unit, rows, part, sum);
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) store_columns<S>(y + r * ldy, part, cols, sum[r]);
  }
}

}  // namespace
}  // namespace outpace
