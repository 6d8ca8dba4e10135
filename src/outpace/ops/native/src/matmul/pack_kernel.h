// Packing a whole tile's columns at once, in vectors of dwords that the compiler has instructions for: a file's row has a
// column's dwords side by side, a tile has the columns of a dword side by side, so 16 bytes of every row are transposed
// and then treated as in `pack_by_dwords`, whose bits these are.
#pragma once

#include <cstring>

#include "kernels.h"
#include "layout.h"

namespace outpace {
namespace {

// Packs S::kWidth columns of a unit (layout.h), from `column` on. S has vectors of as many Dwords, Halves and Bytes. `block` is the first column's part of its row; the others'
// follow at `stride`.
template <class S>
class UnitPacker {
  using Dwords = typename S::Dwords;

 public:
  UnitPacker(const uint8_t* block, int64_t stride, uint8_t* tile, int64_t column)
      : block_(block), stride_(stride), tile_(tile), column_(column) {}

  void pack(Format f, const layout::GroupPlace& place) const {
    switch (f) {
      case Format::Q8_0: return pack_bytes(place);
      case Format::Q4_0:
      case Format::IQ4_NL: return pack_nibbles<false, 0>(place);
      case Format::Q4_1: return pack_nibbles<true, 0>(place);
      case Format::Q5_0: return pack_nibbles<false, 4>(place);
      case Format::Q5_1: return pack_nibbles<true, 4>(place);
      case Format::Q4_K: return pack_q4_k_or_q5_k<false>(place);
      case Format::Q5_K: return pack_q4_k_or_q5_k<true>(place);
      case Format::Q2_K: return pack_q2_k(place);
      case Format::Q3_K: return pack_q3_k(place);
      case Format::IQ4_XS: return pack_iq4_xs(place);
      case Format::MXFP4: return pack_mxfp4(place);
      default: return pack_q6_k(place);
    }
  }

 private:
  static constexpr uint32_t kLow4 = 0x0F0F0F0FU, kLow2 = 0x03030303U;

  // Dwords `at / 4` to `at / 4 + 3` of every column.
  void load(int64_t at, Dwords out[4]) const { S::transpose(block_ + at, stride_, out); }

  void store(int64_t codes, int64_t index, Dwords v) const {
    std::memcpy(tile_ + codes + (index * kTileWidth + column_) * 4, &v, sizeof v);
  }

  void store_halves(int64_t offset, Dwords v) const {
    const auto halves = __builtin_convertvector(v, typename S::Halves);
    std::memcpy(tile_ + offset + 2 * column_, &halves, sizeof halves);
  }

  // The lowest byte of `v` to a line of bytes.
  void store_byte(int64_t offset, int64_t line, Dwords v) const {
    const auto bytes = __builtin_convertvector(v, typename S::Bytes);
    std::memcpy(tile_ + offset + line * kTileWidth + column_, &bytes, sizeof bytes);
  }

  // Byte i of `v` to line `first + i` of bytes.
  void store_bytes(int64_t offset, int64_t first, Dwords v) const {
    for (int64_t i = 0; i < 4; ++i) store_byte(offset, first + i, v >> static_cast<uint32_t>(8 * i));
  }

  void pack_bytes(const layout::GroupPlace& place) const {
    Dwords head[4], w[8];
    load(0, head);
    load(2, w);
    load(18, w + 4);
    store_halves(place.scale, head[0]);
    for (int64_t j = 0; j < 8; ++j) store(place.codes, j, w[j] ^ 0x80808080U);
  }

  template <bool HasMinimum, int64_t HighBytes>
  void pack_nibbles(const layout::GroupPlace& place) const {
    constexpr int64_t kHead = HasMinimum ? 4 : 2;
    Dwords head[4], q[4];
    load(0, head);
    load(kHead + HighBytes, q);
    store_halves(place.scale, head[0]);
    if constexpr (HasMinimum) store_halves(place.minimum, head[0] >> 16);
    for (int64_t j = 0; j < 4; ++j) store(place.codes, j, q[j]);
    if constexpr (HighBytes > 0) {
      store(place.codes, 4, fifth_bits(HasMinimum ? head[1] : head[0] >> 16 | head[1] << 16));
    }
  }

  // From bits in the order of their codes to the order of layout.h: bit 4 j + b to bit 8 b + j. The number of a bit has
  // binary digits j2 j1 j0 b1 b0; four swaps of two digits make b1 b0 j2 j1 j0 of them.
  static Dwords fifth_bits(Dwords v) {
    swap_digits<4, 1>(v);
    swap_digits<3, 0>(v);
    swap_digits<2, 1>(v);
    swap_digits<1, 0>(v);
    return v;
  }

  // The bits whose number has digit P set trade places with those that have digit Q set instead.
  template <int P, int Q>
  static void swap_digits(Dwords& v) {
    constexpr uint32_t kShift = (1 << P) - (1 << Q), kMoved = bits_with(Q) & ~bits_with(P);
    const Dwords t = (v >> kShift ^ v) & kMoved;
    v ^= t ^ t << kShift;
  }

  static constexpr uint32_t bits_with(int digit) {
    uint32_t bits = 0;
    for (int i = 0; i < 32; ++i) bits |= static_cast<uint32_t>(i >> digit & 1) << i;
    return bits;
  }

  // The low and the high nibbles of eight dwords each become a group's codes: 0 to 15 low and 16 to 31 high.
  void store_nibbles(const Dwords w[8], int64_t of_low, int64_t of_high) const {
    for (int64_t j = 0; j < 4; ++j) {
      store(of_low, j, (w[j] & kLow4) | (w[j + 4] & kLow4) << 4);
      store(of_high, j, (w[j] >> 4 & kLow4) | (w[j + 4] & ~kLow4));
    }
  }

  // Fields of `Bits` bits: field f of a[i] becomes field i of a[f], in every byte, for 8 / Bits vectors.
  template <uint32_t Bits>
  static void transpose_fields(Dwords* a) {
    constexpr uint32_t kFields = 8 / Bits;
    constexpr uint32_t kMasks[] = {0x55555555U, 0x33333333U, 0x0F0F0F0FU};
    for (uint32_t s = kFields / 2; s > 0; s /= 2) {
      const uint32_t shift = s * Bits, mask = kMasks[shift / 2];
      for (uint32_t i = 0; i < kFields; ++i) {
        if (i & s) continue;
        const Dwords t = (a[i] >> shift ^ a[i + s]) & mask;
        a[i + s] ^= t;
        a[i] ^= t << shift;
      }
    }
  }

  template <bool HasHigh>
  void pack_q4_k_or_q5_k(const layout::GroupPlace& first) const {
    constexpr Format kFormat = HasHigh ? Format::Q5_K : Format::Q4_K;
    constexpr int64_t kGroup = layout::group_bytes(kFormat);
    Dwords head[4];
    load(0, head);
    store_halves(first.unit, head[0]);
    store_halves(first.unit + layout::kHalves, head[0] >> 16);
    // Eight scales and eight minimums of six bits.
    store_bytes(first.scale, 0, head[1] & 0x3F3F3F3FU);
    store_bytes(first.scale, 4, (head[3] & kLow4) | (head[1] >> 6 & kLow2) << 4);
    store_bytes(first.minimum, 0, head[2] & 0x3F3F3F3FU);
    store_bytes(first.minimum, 4, (head[3] >> 4 & kLow4) | (head[2] >> 6 & kLow2) << 4);
    for (int64_t pair = 0; pair < 4; ++pair) {
      const int64_t codes = first.codes + 2 * pair * kGroup, low = (HasHigh ? 48 : 16) + 32 * pair;
      Dwords w[8];
      load(low, w);
      load(low + 16, w + 4);
      store_nibbles(w, codes, codes + kGroup);
    }
    if constexpr (HasHigh) {
      Dwords h[8];
      load(16, h);
      load(32, h + 4);
      transpose_fields<1>(h);
      for (int64_t g = 0; g < 8; ++g) store(first.codes + g * kGroup + layout::high_place(kFormat), 0, h[g]);
    }
  }

  void pack_q6_k(const layout::GroupPlace& first) const {
    constexpr int64_t kGroup = layout::group_bytes(Format::Q6_K), kHigh = layout::high_place(Format::Q6_K);
    Dwords scales[4], tail[4];
    load(192, scales);
    load(194, tail);
    for (int64_t i = 0; i < 4; ++i) store_bytes(first.scale, 4 * i, scales[i]);
    store_halves(first.unit + layout::d_place(Format::Q6_K), tail[3] >> 16);
    for (int64_t half = 0; half < 2; ++half) {
      const int64_t codes = first.codes + 4 * half * kGroup;
      Dwords w[8], h[8];
      for (int64_t i = 0; i < 2; ++i) {
        load(64 * half + 32 * i, w);
        load(64 * half + 32 * i + 16, w + 4);
        store_nibbles(w, codes + i * kGroup, codes + (i + 2) * kGroup);
      }
      load(128 + 32 * half, h);
      load(128 + 32 * half + 16, h + 4);
      transpose_fields<2>(h);
      transpose_fields<2>(h + 4);
      for (int64_t quarter = 0; quarter < 4; ++quarter) {
        store(codes + quarter * kGroup + kHigh, 0, h[quarter]);
        store(codes + quarter * kGroup + kHigh, 1, h[4 + quarter]);
      }
    }
  }

  // The pairs of bits in 32 bytes become two vectors of each of four groups, from `codes` on.
  void store_pairs(int64_t at, int64_t codes, int64_t group_bytes) const {
    Dwords q[8];
    load(at, q);
    load(at + 16, q + 4);
    transpose_fields<2>(q);
    transpose_fields<2>(q + 4);
    for (int64_t g = 0; g < 4; ++g) {
      store(codes + g * group_bytes, 0, q[g]);
      store(codes + g * group_bytes, 1, q[4 + g]);
    }
  }

  void pack_q2_k(const layout::GroupPlace& first) const {
    constexpr int64_t kGroup = layout::group_bytes(Format::Q2_K), kHalf = layout::d_place(Format::Q2_K);
    Dwords scales[4], tail[4];
    load(0, scales);
    load(68, tail);
    for (int64_t i = 0; i < 4; ++i) store_bytes(first.scale, 4 * i, scales[i]);
    store_halves(first.unit + kHalf, tail[3]);
    store_halves(first.unit + kHalf + layout::kHalves, tail[3] >> 16);
    for (int64_t half = 0; half < 2; ++half) store_pairs(16 + 32 * half, first.codes + 4 * half * kGroup, kGroup);
  }

  void pack_q3_k(const layout::GroupPlace& first) const {
    constexpr int64_t kGroup = layout::group_bytes(Format::Q3_K), kHigh = layout::high_place(Format::Q3_K);
    Dwords tail[4], high[8];
    load(94, tail);  // two bytes of codes, 12 of scales, d
    // 16 scales of six bits: their low nibbles in eight bytes, their high pairs in four.
    for (int64_t i = 0; i < 2; ++i) {
      const Dwords low = tail[i] >> 16 | tail[i + 1] << 16;
      for (uint32_t nibble = 0; nibble < 2; ++nibble) {
        const Dwords scales = low >> 4 * nibble & kLow4, pairs = scales | scales >> 4;
        store_byte(first.scale, 4 * nibble + 2 * i, pairs);
        store_byte(first.scale, 4 * nibble + 2 * i + 1, pairs >> 16);
      }
    }
    const Dwords above = tail[2] >> 16 | tail[3] << 16;
    for (uint32_t i = 0; i < 4; ++i) {
      const Dwords pairs = above >> 2 * i & kLow2;
      store_byte(first.minimum, i, pairs | pairs >> 6 | pairs >> 12 | pairs >> 18);
    }
    store_halves(first.unit + layout::d_place(Format::Q3_K), tail[3] >> 16);
    for (int64_t half = 0; half < 2; ++half) store_pairs(32 + 32 * half, first.codes + 4 * half * kGroup, kGroup);
    load(0, high);
    load(16, high + 4);
    transpose_fields<1>(high);
    for (int64_t g = 0; g < 8; ++g) store(first.codes + g * kGroup + kHigh, 0, high[g]);
  }

  void pack_iq4_xs(const layout::GroupPlace& first) const {
    constexpr int64_t kGroup = layout::group_bytes(Format::IQ4_XS);
    Dwords head[4], q[4];
    load(0, head);  // d and the scales' high pairs, their low nibbles
    store_halves(first.unit + layout::d_place(Format::IQ4_XS), head[0]);
    for (uint32_t g = 0; g < 8; ++g) {
      store_byte(first.scale, g, ((head[1] >> 4 * g & 15) | (head[0] >> (16 + 2 * g) & 3) << 4) - 32);
      load(8 + 16 * g, q);
      for (int64_t j = 0; j < 4; ++j) store(first.codes + g * kGroup, j, q[j]);
    }
  }

  void pack_mxfp4(const layout::GroupPlace& place) const {
    Dwords head[4], q[4];
    load(0, head);
    load(1, q);
    store_byte(place.scale, 0, head[0]);
    for (int64_t j = 0; j < 4; ++j) store(place.codes, j, q[j]);
  }

  const uint8_t* block_;
  int64_t stride_;
  uint8_t* tile_;
  int64_t column_;
};

template <class S>
void pack_whole_tile(const Matrix& matrix, const uint8_t* rows, uint8_t* tile) {
  const Format f = matrix.format;
  const int64_t stride = row_bytes(f, matrix.in);
  const int64_t groups = layout::has_super_blocks(f) ? layout::kSuperGroups : 1;
  const int64_t block_bytes = row_bytes(f, groups * layout::kGroup);
  for (int64_t g = 0; g < matrix.in / layout::kGroup; g += groups) {
    const auto place = layout::group_place(f, matrix.in, g);
    const uint8_t* block = rows + g / groups * block_bytes;
    for (int64_t c = 0; c < kTileWidth; c += S::kWidth) {
      UnitPacker<S>(block + c * stride, stride, tile, c).pack(f, place);
    }
  }
}

}  // namespace
}  // namespace outpace
