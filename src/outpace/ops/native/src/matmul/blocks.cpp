#include "blocks.h"

#include <bit>
#include <cstring>

#include "half.h"
#include "layout.h"

namespace outpace {
namespace {

constexpr int kBlock = 32;

// Codes from 16 bytes: low nibbles, then high nibbles.
void read_nibbles(const uint8_t* q, uint8_t* codes) {
  for (int i = 0; i < 16; ++i) {
    codes[i] = q[i] & 15;
    codes[i + 16] = q[i] >> 4;
  }
}

// Bit i of a 32-bit word is the fifth bit of code i.
void add_fifth_bits(uint32_t bits, uint8_t* codes) {
  for (int i = 0; i < kBlock; ++i) codes[i] |= (bits >> i & 1U) << 4;
}

void read_block32(Format format, const uint8_t* block, Group& group) {
  if (format == Format::MXFP4) {
    group.scale[0] = block[0];
    return read_nibbles(block + 1, group.codes);
  }
  group.d = read_bytes<uint16_t>(block);
  const uint8_t* rest = block + 2;
  if (format == Format::Q8_0) {
    for (int i = 0; i < kBlock; ++i) group.codes[i] = rest[i] ^ 0x80U;
    return;
  }
  if (layout::has_minimum(format)) {
    group.m = read_bytes<uint16_t>(rest);
    rest += 2;
  }
  if (layout::high_bits(format) == 0) {
    read_nibbles(rest, group.codes);
  } else {
    read_nibbles(rest + 4, group.codes);
    add_fifth_bits(read_bytes<uint32_t>(rest), group.codes);
  }
}

// Scale and minimum j of the eight that share 12 bytes (see `_six_bit_scales` of the reference).
void read_six_bits(const uint8_t* p, int64_t j, Group& group) {
  if (j < 4) {
    group.scale[0] = p[j] & 63;
    group.minimum[0] = p[j + 4] & 63;
  } else {
    group.scale[0] = static_cast<uint8_t>((p[j + 4] & 15) | p[j - 4] >> 6 << 4);
    group.minimum[0] = static_cast<uint8_t>(p[j + 4] >> 4 | p[j] >> 6 << 4);
  }
  group.scale[1] = group.scale[0];
  group.minimum[1] = group.minimum[0];
}

void read_q4_k_or_q5_k(Format format, const uint8_t* block, int64_t j, Group& group) {
  group.d = read_bytes<uint16_t>(block);
  group.m = read_bytes<uint16_t>(block + 2);
  read_six_bits(block + 4, j, group);
  const uint8_t* high = block + 16;
  const uint8_t* low = block + (format == Format::Q5_K ? 48 : 16) + j / 2 * 32;
  for (int i = 0; i < kBlock; ++i) {
    group.codes[i] = low[i] >> j % 2 * 4 & 15;
    if (format == Format::Q5_K) group.codes[i] |= (high[i] >> j & 1) << 4;
  }
}

void read_q6_k(const uint8_t* block, int64_t j, Group& group) {
  group.d = read_bytes<uint16_t>(block + 208);
  group.scale[0] = block[192 + 2 * j];
  group.scale[1] = block[192 + 2 * j + 1];
  const int64_t half = j / 4, quarter = j % 4;
  const uint8_t* low = block + 64 * half + 32 * (quarter % 2);
  const uint8_t* high = block + 128 + 32 * half;
  for (int i = 0; i < kBlock; ++i) {
    group.codes[i] = static_cast<uint8_t>((low[i] >> quarter / 2 * 4 & 15) | (high[i] >> 2 * quarter & 3) << 4);
  }
}

// Pairs of bits: group j % 4 of the four that share 32 bytes.
void read_pairs(const uint8_t* q, int64_t j, uint8_t* codes) {
  for (int i = 0; i < kBlock; ++i) codes[i] = q[j / 4 * 32 + i] >> 2 * (j % 4) & 3;
}

void read_q2_k(const uint8_t* block, int64_t j, Group& group) {
  group.d = read_bytes<uint16_t>(block + 80);
  group.m = read_bytes<uint16_t>(block + 82);
  for (int half = 0; half < 2; ++half) {
    group.scale[half] = block[2 * j + half] & 15;
    group.minimum[half] = block[2 * j + half] >> 4;
  }
  read_pairs(block + 16, j, group.codes);
}

void read_q3_k(const uint8_t* block, int64_t j, Group& group) {
  group.d = read_bytes<uint16_t>(block + 108);
  const uint8_t* scales = block + 96;  // 16 of six bits: nibbles in 8 bytes, then pairs in 4
  for (int half = 0; half < 2; ++half) {
    const int64_t i = 2 * j + half;
    group.scale[half] =
        static_cast<uint8_t>(((scales[i % 8] >> i / 8 * 4 & 15) | (scales[8 + i % 4] >> 2 * (i / 4) & 3) << 4) - 32);
  }
  read_pairs(block + 32, j, group.codes);
  for (int i = 0; i < kBlock; ++i) group.codes[i] |= (block[i] >> j & 1) << 2;
}

void read_iq4_xs(const uint8_t* block, int64_t j, Group& group) {
  group.d = read_bytes<uint16_t>(block);
  const int high = read_bytes<uint16_t>(block + 2) >> 2 * j & 3;
  group.scale[0] = group.scale[1] = static_cast<uint8_t>(((block[4 + j / 2] >> j % 2 * 4 & 15) | high << 4) - 32);
  read_nibbles(block + 8 + 16 * j, group.codes);
}

// Half of 2^(e - 127): what a table of doubled numbers is multiplied by.
float float_from_exponent(uint8_t e) {
  return std::bit_cast<float>(e < 2 ? uint32_t{0x00200000} << e : (uint32_t{e} - 1) << 23);
}

}  // namespace

void read_group(Format format, const uint8_t* row, int64_t g, Group& group) {
  if (!layout::has_super_blocks(format)) return read_block32(format, row + g * row_bytes(format, kBlock), group);
  const uint8_t* block = row + g / layout::kSuperGroups * row_bytes(format, 256);
  const int64_t j = g % layout::kSuperGroups;
  switch (format) {
    case Format::Q2_K: return read_q2_k(block, j, group);
    case Format::Q3_K: return read_q3_k(block, j, group);
    case Format::Q6_K: return read_q6_k(block, j, group);
    case Format::IQ4_XS: return read_iq4_xs(block, j, group);
    default: read_q4_k_or_q5_k(format, block, j, group);
  }
}

void dequantise_group(Format format, const Group& group, float* y) {
  const float d = format == Format::MXFP4 ? float_from_exponent(group.scale[0]) : float_from_half(group.d);
  const auto table = layout::table(format);
  for (int i = 0; i < kBlock; ++i) {
    const int unsigned_code = layout::has_table(format) ? table.code[group.codes[i]] : group.codes[i];
    const auto code = static_cast<float>(unsigned_code - (layout::code_offset(format) >> layout::code_shift(format)));
    const auto scale = static_cast<float>(static_cast<int8_t>(group.scale[i / 16]));
    if (layout::has_super_blocks(format) && layout::has_minimum(format)) {
      y[i] = d * scale * code - float_from_half(group.m) * static_cast<float>(group.minimum[i / 16]);
    } else if (layout::has_super_blocks(format)) {
      y[i] = d * scale * code;
    } else if (layout::has_minimum(format)) {
      y[i] = d * code + float_from_half(group.m);
    } else {
      y[i] = d * code;
    }
  }
}

void read_floats(Format format, const uint8_t* row, int64_t k, int64_t n, float* y) {
  if (format == Format::F32) {
    std::memcpy(y, row + 4 * k, static_cast<size_t>(4 * n));
    return;
  }
  for (int64_t i = 0; i < n; ++i) {
    const auto bits = read_bytes<uint16_t>(row + 2 * (k + i));
    y[i] = format == Format::F16 ? float_from_half(bits) : float_from_bf16(bits);
  }
}

}  // namespace outpace
