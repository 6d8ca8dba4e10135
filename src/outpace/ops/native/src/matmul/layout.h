// Where the numbers of a packed tile and of prepared activations lie. The same for every instruction set.
//
// A tile holds 16 output columns. Quantised formats cut K into groups of 32. A group's codes are eight vectors w[0..7]
// of 16 dwords: byte b of dword c in w[j] is the unsigned code of column c at k = 4 j + b, so a dot product of four
// codes with four int8 activations is one lane of one instruction. They are stored as
//
//     4 low bits    q[0..3]: low nibbles are w[0..3], high nibbles w[4..7]                      256 bytes
//     fifth bit     h: bit j of byte b of dword c belongs to w[j]                                64 bytes
//     bits 5 and 6  h[0..1]: bits 2 (j % 4) and above of h[j / 4] belong to w[j]                128 bytes
//     8 bits        w[0..7]                                                                     512 bytes
//
// and stand in the order in which a kernel reads them:
//
//     32-blocks     units of two groups: codes, codes, then 16 halves each of d, d (and m, m); an odd last group alone
//     Q4_K, Q5_K    units of 256: 16 halves of d, 16 of dmin, 8 x 16 scales, 8 x 16 minimums, 8 x codes
//     Q6_K          units of 256: 16 x 16 scales (int8; two to a group), 16 halves of d, padding, 8 x codes
//     F32, F16      for each k, 16 numbers
//     BF16          for each pair of k, 16 dwords: the even k is the low half
#pragma once

#include "matmul.h"

namespace outpace::layout {

constexpr int64_t kGroup = 32;         // numbers that share an activation scale
constexpr int64_t kHalves = 32;        // bytes of 16 halves
constexpr int64_t kSuperGroups = 8;    // groups in a K-quant's unit
constexpr int64_t kSuperHeader = 320;  // bytes before its codes

constexpr bool is_k_quant(Format f) { return f == Format::Q4_K || f == Format::Q5_K || f == Format::Q6_K; }
constexpr bool is_float(Format f) { return f == Format::F32 || f == Format::F16 || f == Format::BF16; }

// Whether the stored code is the number plus an offset that the kernel takes away again.
constexpr int code_offset(Format f) {
  switch (f) {
    case Format::Q8_0: return 128;
    case Format::Q4_0: return 8;
    case Format::Q5_0: return 16;
    case Format::Q6_K: return 32;
    default: return 0;
  }
}

constexpr bool has_minimum(Format f) {
  return f == Format::Q4_1 || f == Format::Q5_1 || f == Format::Q4_K || f == Format::Q5_K;
}

constexpr int high_bits(Format f) {
  if (f == Format::Q6_K) return 2;
  return f == Format::Q5_0 || f == Format::Q5_1 || f == Format::Q5_K ? 1 : 0;
}

constexpr int code_bits(Format f) { return f == Format::Q8_0 ? 8 : 4 + high_bits(f); }

constexpr int64_t group_bytes(Format f) {  // codes of one group
  return f == Format::Q8_0 ? 512 : 256 + 64 * high_bits(f);
}

constexpr int64_t unit_groups(Format f) { return is_k_quant(f) ? kSuperGroups : 2; }

// Bytes of a unit of n groups.
constexpr int64_t unit_bytes(Format f, int64_t n) {
  if (is_k_quant(f)) return kSuperHeader + n * group_bytes(f);
  return n * (group_bytes(f) + kHalves * (has_minimum(f) ? 2 : 1));
}

constexpr int64_t tile_bytes(Format f, int64_t in) {
  int64_t bytes = 0;
  if (f == Format::F32) {
    bytes = in * 64;
  } else if (f == Format::F16) {
    bytes = in * 32;
  } else if (f == Format::BF16) {
    bytes = (in + 1) / 2 * 64;
  } else {
    const int64_t groups = in / kGroup, n = unit_groups(f);
    bytes = groups / n * unit_bytes(f, n) + (groups % n ? unit_bytes(f, groups % n) : 0);
  }
  return (bytes + 63) / 64 * 64;
}

// Offset of group g's codes in a tile, of its scales (halves, or bytes of a K-quant), and of its minimums.
struct GroupPlace {
  int64_t unit, codes, scale, minimum;
};

constexpr GroupPlace group_place(Format f, int64_t in, int64_t g) {
  const int64_t n = unit_groups(f), u = g / n, j = g % n;
  const int64_t unit = u * unit_bytes(f, n);
  if (f == Format::Q6_K) return {unit, unit + kSuperHeader + j * group_bytes(f), unit + j * 32, 0};
  if (is_k_quant(f)) {
    return {unit, unit + kSuperHeader + j * group_bytes(f), unit + 64 + j * 16, unit + 192 + j * 16};
  }
  const int64_t here = in / kGroup - u * n < n ? in / kGroup - u * n : n;
  const int64_t scales = unit + here * group_bytes(f);
  return {unit, unit + j * group_bytes(f), scales + j * kHalves, scales + (here + j) * kHalves};
}

// Rows of activations come in blocks of up to `row_block` (a choice of the instruction set); only the last is smaller.
// Within a block of n rows, a row advances by a line of 64 bytes at a time, and the n rows' lines stand together. So no
// two threads that prepare different rows write to one line. A line is, by kind:
//     Int8    a QuantisedRow: a group of 32 k
//     F32     16 k, as floats
//     BF16    32 k, as bfloat16
// and what lies past the end of K is zero.
constexpr int64_t kLine = 64;
constexpr int64_t kLineDwords = 16;

struct alignas(64) QuantisedRow {
  int8_t q[32];         // x / scale, rounded to nearest, ties to even
  int32_t minus_sum_8;  // the sum of q, times minus the code offset of a format: where its dot products start
  int32_t minus_sum_16;
  int32_t minus_sum_128;
  int32_t minus_half_32[2];  // the same of q[0..15] and q[16..31] times 32, for Q6_K
  float scale;               // largest |x| / 127
  float scaled_sum;          // scale * sum of q
  int32_t unused;
};
static_assert(sizeof(QuantisedRow) == kLine);

constexpr int64_t line_width(ActKind kind) { return kind == ActKind::F32 ? 16 : 32; }

constexpr int64_t activation_row_bytes(ActKind kind, int64_t in) {
  return (in + line_width(kind) - 1) / line_width(kind) * kLine;
}

}  // namespace outpace::layout
