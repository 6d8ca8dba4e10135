// Activations in the form that a kernel wants: one row of float32 into its place in a block of rows (layout.h).
//
// No result depends on the order of operations or the width of vectors: all instruction sets give the same bits.
#pragma once

#include <limits>

#include "layout.h"

namespace outpace {
namespace {

// Rounds 32 numbers to int8 with a scale of their own. An infinity or a NaN makes the scale and the row's products NaN.
template <class S>
[[gnu::always_inline]] inline void quantise_group(const float* x, layout::QuantisedRow& row) {
  constexpr float kTooSmall = 1e-30F;    // 127 / largest must not overflow; such a group counts as zeros
  constexpr float kRound = 12582912.0F;  // 1.5 * 2^23: adding it rounds to an integer, in the low bits
  constexpr int kVectors = layout::kGroup / S::kLanes;
  typename S::Float v[kVectors];
  typename S::Int most = S::splat_int(0);  // magnitudes compare as integers do, NaNs above infinity
  for (int i = 0; i < kVectors; ++i) {
    v[i] = S::load(reinterpret_cast<const uint8_t*>(x + i * S::kLanes));
    most = S::largest(most, S::bit_and(S::bits(v[i]), S::splat_int(0x7FFFFFFF)));
  }
  const float largest = __builtin_bit_cast(float, S::largest_lane(most));
  if (!(largest <= std::numeric_limits<float>::max())) {
    row = {};
    row.scale = row.scaled_sum = row.scaled_low = std::numeric_limits<float>::quiet_NaN();
    return;
  }
  const float inverse = largest < kTooSmall ? 0.0F : 127.0F / largest;
  typename S::Int sums[2] = {S::splat_int(0), S::splat_int(0)};
  for (int i = 0; i < kVectors; ++i) {
    const auto magic = S::bits(S::add(S::multiply(v[i], S::splat(inverse)), S::splat(kRound)));
    const auto q = S::add_int(magic, S::splat_int(-__builtin_bit_cast(int32_t, kRound)));
    S::store_bytes(row.q + i * S::kLanes, q);
    sums[2 * i / kVectors] = S::add_int(sums[2 * i / kVectors], q);
  }
  const int32_t low = S::sum_lanes(sums[0]), high = S::sum_lanes(sums[1]);
  row.minus_sum_8 = -8 * (low + high);
  row.minus_sum_16 = -16 * (low + high);
  row.minus_sum_128 = -128 * (low + high);
  row.minus_half_32[0] = -32 * low;
  row.minus_half_32[1] = -32 * high;
  row.scale = largest / 127.0F;
  row.scaled_sum = row.scale * static_cast<float>(low + high);
  row.scaled_low = row.scale * static_cast<float>(low);
}

template <class S>
void prepare_int8(const float* x, int64_t in, uint8_t* block, int64_t r, int64_t n) {
  auto* rows = reinterpret_cast<layout::QuantisedRow*>(block);
  for (int64_t g = 0; g < in / layout::kGroup; ++g) quantise_group<S>(x + layout::kGroup * g, rows[g * n + r]);
}

template <class S>
void prepare_float(const float* x, int64_t in, uint8_t* block, int64_t r, int64_t n) {
  constexpr int64_t kWidth = layout::line_width(ActKind::F32);
  for (int64_t k = 0; k < in; k += kWidth) {
    auto* line = reinterpret_cast<float*>(block + (k / kWidth * n + r) * layout::kLine);
    if (k + kWidth <= in) {
      for (int64_t i = 0; i < kWidth; ++i) line[i] = x[k + i];
    } else {
      for (int64_t i = 0; i < kWidth; ++i) line[i] = k + i < in ? x[k + i] : 0.0F;
    }
  }
}

// Rounds to nearest, ties to even; NaNs stay NaNs.
[[gnu::always_inline]] inline uint16_t bf16(float x) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, x);
  const uint32_t rounded = bits + 0x7FFFU + ((bits >> 16) & 1U);
  return static_cast<uint16_t>(((bits & 0x7FFFFFFFU) > 0x7F800000U ? bits | 0x00400000U : rounded) >> 16);
}

template <class S>
void prepare_bf16(const float* x, int64_t in, uint8_t* block, int64_t r, int64_t n) {
  constexpr int64_t kWidth = layout::line_width(ActKind::BF16);
  for (int64_t k = 0; k < in; k += kWidth) {
    auto* line = reinterpret_cast<uint16_t*>(block + (k / kWidth * n + r) * layout::kLine);
    if (k + kWidth <= in) {
      for (int64_t i = 0; i < kWidth; ++i) line[i] = bf16(x[k + i]);
    } else {
      for (int64_t i = 0; i < kWidth; ++i) line[i] = k + i < in ? bf16(x[k + i]) : uint16_t{0};
    }
  }
}

}  // namespace
}  // namespace outpace
