#include <cstring>

#include "half.h"
#include "isa.h"
#include "layout.h"
#include "pack.h"

namespace outpace {
namespace {

using layout::GroupPlace;

constexpr int64_t kColumns = kTileWidth;
constexpr uint32_t kLow4 = 0x0F0F0F0FU, kLow2 = 0x03030303U, kLow1 = 0x01010101U;

uint32_t load(const uint8_t* p, int64_t index) { return read_bytes<uint32_t>(p + 4 * index); }

void store(uint8_t* tile, int64_t offset, int64_t index, int64_t column, uint32_t value) {
  std::memcpy(tile + offset + (index * kColumns + column) * 4, &value, sizeof value);
}

void copy_half(uint8_t* tile, int64_t offset, int64_t column, const uint8_t* half) {
  std::memcpy(tile + offset + 2 * column, half, 2);
}

// Bit b of a nibble becomes bit 8 b.
constexpr uint32_t spread(uint32_t nibble) {
  return (nibble & 1) | (nibble & 2) << 7 | (nibble & 4) << 14 | (nibble & 8) << 21;
}

// From bits in the order of their codes to the order of layout.h: bit 4 j + b to bit 8 b + j.
uint32_t fifth_bits(uint32_t bits) {
  uint32_t h = 0;
  for (int j = 0; j < 8; ++j) h |= spread(bits >> 4 * j & 15) << j;
  return h;
}

// A block of 32 with nibbles: the file's dwords are those of the tile, because both have codes 0 to 15 low.
void pack_nibbles(Format f, const uint8_t* block, const GroupPlace& place, uint8_t* tile, int64_t column) {
  copy_half(tile, place.scale, column, block);
  const uint8_t* rest = block + 2;
  if (layout::has_minimum(f)) {
    copy_half(tile, place.minimum, column, rest);
    rest += 2;
  }
  if (layout::high_bits(f) == 1) {
    store(tile, place.codes + layout::high_place(f), 0, column, fifth_bits(load(rest, 0)));
    rest += 4;
  }
  for (int j = 0; j < 4; ++j) store(tile, place.codes, j, column, load(rest, j));
}

void pack_bytes(const uint8_t* block, const GroupPlace& place, uint8_t* tile, int64_t column) {
  copy_half(tile, place.scale, column, block);
  for (int j = 0; j < 8; ++j) store(tile, place.codes, j, column, load(block + 2, j) ^ 0x80808080U);
}

// The nibbles of eight dwords at `shift`, codes 0 to 15 low and 16 to 31 high.
void store_nibbles(const uint8_t* low, int shift, int64_t codes, uint8_t* tile, int64_t column) {
  for (int j = 0; j < 4; ++j) {
    store(tile, codes, j, column, (load(low, j) >> shift & kLow4) | (load(low, j + 4) >> shift & kLow4) << 4);
  }
}

// Eight scales and eight minimums of six bits in 12 bytes (see `_six_bit_scales` of the reference).
void store_six_bits(const uint8_t* p, const GroupPlace& first, uint8_t* tile, int64_t column) {
  const uint32_t a = load(p, 0), b = load(p, 1), c = load(p, 2);
  const uint32_t scales[2] = {a & 0x3F3F3F3FU, (c & kLow4) | (a >> 6 & kLow2) << 4};
  const uint32_t minimums[2] = {b & 0x3F3F3F3FU, (c >> 4 & kLow4) | (b >> 6 & kLow2) << 4};
  for (int64_t j = 0; j < 8; ++j) {
    tile[first.scale + j * kColumns + column] = static_cast<uint8_t>(scales[j / 4] >> 8 * (j % 4));
    tile[first.minimum + j * kColumns + column] = static_cast<uint8_t>(minimums[j / 4] >> 8 * (j % 4));
  }
}

void pack_q4_k_or_q5_k(Format f, const uint8_t* block, const GroupPlace& first, uint8_t* tile, int64_t column) {
  const bool has_high = f == Format::Q5_K;
  copy_half(tile, first.unit, column, block);
  copy_half(tile, first.unit + layout::kHalves, column, block + 2);
  store_six_bits(block + 4, first, tile, column);
  const uint8_t *high = block + 16, *low = block + (has_high ? 48 : 16);
  for (int g = 0; g < 8; ++g) {
    const int64_t codes = first.codes + g * layout::group_bytes(f);
    store_nibbles(low + g / 2 * 32, g % 2 * 4, codes, tile, column);
    if (!has_high) continue;
    uint32_t h = 0;
    for (int j = 0; j < 8; ++j) h |= (load(high, j) >> g & kLow1) << j;
    store(tile, codes + layout::high_place(f), 0, column, h);
  }
}

void pack_q6_k(const uint8_t* block, const GroupPlace& first, uint8_t* tile, int64_t column) {
  copy_half(tile, first.unit + layout::d_place(Format::Q6_K), column, block + 208);
  for (int64_t g = 0; g < 8; ++g) {
    for (int64_t half = 0; half < 2; ++half) {
      tile[first.scale + (2 * g + half) * kColumns + column] = block[192 + 2 * g + half];
    }
    const int64_t codes = first.codes + g * layout::group_bytes(Format::Q6_K), quarter = g % 4;
    store_nibbles(block + 64 * (g / 4) + 32 * (quarter % 2), static_cast<int>(quarter / 2 * 4), codes, tile, column);
    const uint8_t* high = block + 128 + 32 * (g / 4);
    uint32_t h[2] = {0, 0};
    for (int64_t j = 0; j < 8; ++j) h[j / 4] |= (load(high, j) >> 2 * quarter & kLow2) << 2 * (j % 4);
    for (int64_t i = 0; i < 2; ++i) store(tile, codes + layout::high_place(Format::Q6_K), i, column, h[i]);
  }
}

void pack_unit(Format f, const uint8_t* block, const GroupPlace& place, uint8_t* tile, int64_t column) {
  switch (f) {
    case Format::Q8_0: return pack_bytes(block, place, tile, column);
    case Format::Q4_K:
    case Format::Q5_K: return pack_q4_k_or_q5_k(f, block, place, tile, column);
    case Format::Q6_K: return pack_q6_k(block, place, tile, column);
    default: return pack_nibbles(f, block, place, tile, column);
  }
}

bool is_known(Format f) {
  switch (f) {
    case Format::Q8_0:
    case Format::Q4_0:
    case Format::Q4_1:
    case Format::Q5_0:
    case Format::Q5_1:
    case Format::IQ4_NL:
    case Format::Q4_K:
    case Format::Q5_K:
    case Format::Q6_K: return true;
    default: return false;
  }
}

// Numbers of `Number` side by side, for each k one of every column. Columns in turn for a few k each: a line of the
// rows that is read is used up, and a line of the tile that is written too.
template <class Number>
void pack_numbers(const uint8_t* rows, int64_t stride, int64_t count, int64_t columns, uint8_t* tile) {
  constexpr int64_t kTogether = 64 / sizeof(Number);
  for (int64_t first = 0; first < count; first += kTogether) {
    const int64_t last = first + kTogether < count ? first + kTogether : count;
    for (int64_t c = 0; c < columns; ++c) {
      const uint8_t* from = rows + c * stride;
      for (int64_t k = first; k < last; ++k) {
        std::memcpy(tile + (k * kColumns + c) * static_cast<int64_t>(sizeof(Number)),
                    from + k * static_cast<int64_t>(sizeof(Number)), sizeof(Number));
      }
    }
  }
}

void pack_float_tile(const Matrix& m, const uint8_t* rows, int64_t stride, int64_t columns, uint8_t* tile) {
  if (m.format == Format::F32) return pack_numbers<uint32_t>(rows, stride, m.in, columns, tile);
  if (m.format == Format::F16) return pack_numbers<uint16_t>(rows, stride, m.in, columns, tile);
  pack_numbers<uint32_t>(rows, stride, m.in / 2, columns, tile);  // BF16: pairs
  if (m.in % 2 == 0) return;
  for (int64_t c = 0; c < columns; ++c) {
    std::memcpy(tile + (m.in / 2 * kColumns + c) * 4, rows + c * stride + (m.in - 1) * 2, 2);
  }
}

// What packs a whole tile with this process's instruction set; null: nothing does.
TilePacker tile_packer() {
#if defined(__x86_64__)
  if (active_isa() == Isa::Avx512) return pack_tile_avx512;
  if (active_isa() == Isa::Avx2) return pack_tile_avx2;
#endif
  return nullptr;
}

}  // namespace

bool pack_by_dwords(const Matrix& matrix, const uint8_t* rows, int64_t columns, uint8_t* tile) {
  const Format f = matrix.format;
  const int64_t stride = row_bytes(f, matrix.in);
  if (layout::is_float(f)) {
    pack_float_tile(matrix, rows, stride, columns, tile);
    return true;
  }
  static const TilePacker whole = tile_packer();
  if (whole != nullptr && columns == kColumns) {
    whole(matrix, rows, tile);
    return true;
  }
  if (!is_known(f)) return false;
  const int64_t groups = layout::has_super_blocks(f) ? layout::kSuperGroups : 1;
  const int64_t block_bytes = row_bytes(f, groups * layout::kGroup);
  for (int64_t g = 0; g < matrix.in / layout::kGroup; g += groups) {
    const auto place = layout::group_place(f, matrix.in, g);
    const uint8_t* block = rows + g / groups * block_bytes;
    for (int64_t c = 0; c < columns; ++c) pack_unit(f, block + c * stride, place, tile, c);
  }
  return true;
}

}  // namespace outpace
