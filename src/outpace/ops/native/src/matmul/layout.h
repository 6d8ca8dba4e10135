// Where the numbers of a packed tile and of prepared activations lie. The same for every instruction set.
//
// A tile holds 16 output columns. Quantised formats cut K into groups of 32. A group's codes are eight vectors w[0..7]
// of 16 dwords: byte b of dword c in w[j] is the unsigned code of column c at k = 4 j + b, so a dot product of four
// codes with four int8 activations is one lane of one instruction. They are stored as
//
//     4 low bits    q[0..3]: low nibbles are w[0..3], high nibbles w[4..7]                      256 bytes
//     2 low bits    q[0..1]: bits 2 (j % 4) and above of q[j / 4] belong to w[j]                128 bytes
//     the next bit  h: bit j of byte b of dword c belongs to w[j]                                64 bytes
//     the next two  h[0..1]: as the 2 low bits                                                  128 bytes
//     8 bits        w[0..7]                                                                     512 bytes
//
// IQ4 and MXFP4 have codes that are places in a table of 16 numbers: a kernel looks them up, plus an offset, on the way.
//
// and stand in the order in which a kernel reads them:
//
//     32-blocks     units of two groups: codes, codes, then 16 halves each of d, d (and m, m); an odd last group alone
//     MXFP4         units of four groups: codes, ..., then 16 exponents of each; those of an unfinished last unit alike
//     Q4_K, Q5_K    units of 256: 16 halves of d, 16 of dmin, 8 x 16 scales, 8 x 16 minimums, 8 x codes
//     Q6_K          units of 256: 16 x 16 scales (int8; two to a group), 16 halves of d, padding, 8 x codes
//     Q2_K          units of 256: 16 x 16 bytes (scale, minimum above it; two to a group), d, dmin, 8 x codes
//     Q3_K          units of 256: 8 x 16 bytes (low nibbles of a group's two scales), 4 x 16 (the scales' high bits, two
//                   groups to a byte), d, padding, 8 x codes
//     IQ4_XS        units of 256: 8 x 16 scales (int8), d, padding, 8 x codes
//     F32, F16      for each k, 16 numbers
//     BF16          for each pair of k, 16 dwords: the even k is the low half
#pragma once

#include "matmul.h"

namespace outpace::layout {

constexpr int64_t kGroup = 32;         // numbers that share an activation scale
constexpr int64_t kHalves = 32;        // bytes of 16 halves
constexpr int64_t kSuperGroups = 8;    // groups in a unit of 256

// Whether 256 numbers share a scale of scales.
constexpr bool has_super_blocks(Format f) {
  return f == Format::Q2_K || f == Format::Q3_K || f == Format::Q4_K || f == Format::Q5_K || f == Format::Q6_K ||
         f == Format::IQ4_XS;
}

// Whether the halves of a group have scales (and minimums) of their own.
constexpr bool halves_differ(Format f) { return f == Format::Q2_K || f == Format::Q3_K || f == Format::Q6_K; }

constexpr bool is_float(Format f) { return f == Format::F32 || f == Format::F16 || f == Format::BF16; }

// What is added to a code to make it unsigned, and what the kernel takes away again. Q3_K's codes are multiplied by 8
// (code_shift), which its scale takes back.
constexpr int code_offset(Format f) {
  switch (f) {
    case Format::Q8_0:
    case Format::IQ4_NL:
    case Format::IQ4_XS: return 128;
    case Format::Q4_0: return 8;
    case Format::Q5_0:
    case Format::MXFP4: return 16;
    case Format::Q3_K:
    case Format::Q6_K: return 32;
    default: return 0;
  }
}

constexpr int code_shift(Format f) { return f == Format::Q3_K ? 3 : 0; }

constexpr bool has_table(Format f) { return f == Format::IQ4_NL || f == Format::IQ4_XS || f == Format::MXFP4; }

struct Table {
  uint8_t code[16];
};

// The numbers that four-bit codes stand for, plus code_offset.
constexpr Table table(Format f) {
  if (f == Format::MXFP4) return {{16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4}};  // FP4 (E2M1), doubled
  return {{1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241}};
}

constexpr bool has_minimum(Format f) {
  return f == Format::Q4_1 || f == Format::Q5_1 || f == Format::Q2_K || f == Format::Q4_K || f == Format::Q5_K;
}

constexpr int low_bits(Format f) {
  if (f == Format::Q8_0) return 8;
  return f == Format::Q2_K || f == Format::Q3_K ? 2 : 4;
}

constexpr int high_bits(Format f) {
  if (f == Format::Q6_K) return 2;
  return f == Format::Q5_0 || f == Format::Q5_1 || f == Format::Q5_K || f == Format::Q3_K ? 1 : 0;
}

// Of the codes that meet activations.
constexpr int code_bits(Format f) {
  if (f == Format::IQ4_NL || f == Format::IQ4_XS) return 8;
  if (f == Format::MXFP4) return 5;
  return low_bits(f) + high_bits(f) + code_shift(f);
}

constexpr int64_t high_place(Format f) { return 64 * low_bits(f); }  // of high bits in a group's codes

constexpr int64_t group_bytes(Format f) { return 64 * (low_bits(f) + high_bits(f)); }  // codes of one group

constexpr int64_t unit_groups(Format f) { return has_super_blocks(f) ? kSuperGroups : f == Format::MXFP4 ? 4 : 2; }

constexpr int64_t scale_bytes(Format f) { return f == Format::MXFP4 ? kTileWidth : kHalves; }  // of a group

// Bytes before the codes of a unit of 256, and where among them d stands (dmin behind it).
constexpr int64_t header_bytes(Format f) { return f == Format::Q3_K ? 256 : f == Format::IQ4_XS ? 192 : 320; }

constexpr int64_t d_place(Format f) {
  switch (f) {
    case Format::Q2_K:
    case Format::Q6_K: return 256;
    case Format::Q3_K: return 192;
    case Format::IQ4_XS: return 128;
    default: return 0;
  }
}

// Bytes of a unit of n groups.
constexpr int64_t unit_bytes(Format f, int64_t n) {
  if (has_super_blocks(f)) return header_bytes(f) + n * group_bytes(f);
  return n * (group_bytes(f) + scale_bytes(f) * (has_minimum(f) ? 2 : 1));
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

// Offset of group g's unit in a tile, of its codes, of its scales (halves, or bytes in a unit of 256), and of its
// minimums.
struct GroupPlace {
  int64_t unit, codes, scale, minimum;
};

constexpr GroupPlace group_place(Format f, int64_t in, int64_t g) {
  const int64_t n = unit_groups(f), u = g / n, j = g % n;
  const int64_t unit = u * unit_bytes(f, n);
  if (has_super_blocks(f)) {
    const int64_t codes = unit + header_bytes(f) + j * group_bytes(f);
    switch (f) {
      case Format::Q2_K:
      case Format::Q6_K: return {unit, codes, unit + j * 32, 0};
      case Format::Q3_K: return {unit, codes, unit + j * 16, unit + 128 + j / 2 * 16};
      case Format::IQ4_XS: return {unit, codes, unit + j * 16, 0};
      default: return {unit, codes, unit + 64 + j * 16, unit + 192 + j * 16};
    }
  }
  const int64_t here = in / kGroup - u * n < n ? in / kGroup - u * n : n;
  const int64_t scales = unit + here * group_bytes(f);
  return {unit, unit + j * group_bytes(f), scales + j * scale_bytes(f), scales + (here + j) * scale_bytes(f)};
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
  int32_t minus_half_32[2];  // the same of q[0..15] and q[16..31] times 32, for Q3_K and Q6_K
  float scale;               // largest |x| / 127
  float scaled_sum;          // scale * sum of q
  float scaled_low;          // scale * sum of q[0..15], for Q2_K
};
static_assert(sizeof(QuantisedRow) == kLine);

constexpr int64_t line_width(ActKind kind) { return kind == ActKind::F32 ? 16 : 32; }

constexpr int64_t activation_row_bytes(ActKind kind, int64_t in) {
  return (in + line_width(kind) - 1) / line_width(kind) * kLine;
}

}  // namespace outpace::layout
