// From a file's rows to packed tiles (layout.h), and back for single rows.
#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "blocks.h"
#include "half.h"
#include "kernels.h"
#include "layout.h"
#include "pack.h"

namespace outpace {
namespace {

constexpr int64_t kColumns = kTileWidth;

struct FormatInfo {
  std::string_view name;
  int64_t width, bytes;  // of a block
};

constexpr FormatInfo kFormats[kNumFormats] = {
    {"F32", 1, 4},    {"F16", 1, 2},    {"BF16", 1, 2},     {"Q8_0", 32, 34},   {"Q4_0", 32, 18},   {"Q4_1", 32, 20},
    {"Q5_0", 32, 22}, {"Q5_1", 32, 24}, {"Q4_K", 256, 144}, {"Q5_K", 256, 176}, {"Q6_K", 256, 210},
    {"Q2_K", 256, 84}, {"Q3_K", 256, 110}, {"IQ4_NL", 32, 18}, {"IQ4_XS", 256, 136}, {"MXFP4", 32, 17},
};

const FormatInfo& info(Format format) { return kFormats[static_cast<int>(format)]; }

uint32_t& dword(uint8_t* tile, int64_t offset, int64_t index) {
  return reinterpret_cast<uint32_t*>(tile + offset)[index];
}

uint16_t& half(uint8_t* tile, int64_t offset, int64_t column) {
  return reinterpret_cast<uint16_t*>(tile + offset)[column];
}

// Where the halves d and m (or dmin) of a group lie.
int64_t d_offset(Format f, const layout::GroupPlace& place) {
  return layout::has_super_blocks(f) ? place.unit + layout::d_place(f) : place.scale;
}

int64_t m_offset(Format f, const layout::GroupPlace& place) {
  return layout::has_super_blocks(f) ? d_offset(f, place) + layout::kHalves : place.minimum;
}

void write_codes(Format f, const Group& group, uint8_t* tile, int64_t offset, int64_t column) {
  uint32_t w[8];
  std::memcpy(w, group.codes, sizeof w);
  if (f == Format::Q8_0) {
    for (int j = 0; j < 8; ++j) dword(tile, offset, kColumns * j + column) = w[j];
    return;
  }
  const int low = layout::low_bits(f);
  if (low == 2) {
    uint32_t q[2] = {0, 0};
    for (int j = 0; j < 8; ++j) q[j / 4] |= (w[j] & 0x03030303U) << 2 * (j % 4);
    dword(tile, offset, column) = q[0];
    dword(tile, offset + 64, column) = q[1];
  } else {
    for (int j = 0; j < 4; ++j) {
      dword(tile, offset, kColumns * j + column) = (w[j] & 0x0F0F0F0FU) | (w[j + 4] & 0x0F0F0F0FU) << 4;
    }
  }
  if (layout::high_bits(f) == 1) {
    uint32_t h = 0;
    for (int j = 0; j < 8; ++j) h |= (w[j] >> low & 0x01010101U) << j;
    dword(tile, offset + layout::high_place(f), column) = h;
  } else if (layout::high_bits(f) == 2) {
    uint32_t h[2] = {0, 0};
    for (int j = 0; j < 8; ++j) h[j / 4] |= (w[j] >> 4 & 0x03030303U) << 2 * (j % 4);
    dword(tile, offset + 256, column) = h[0];
    dword(tile, offset + 320, column) = h[1];
  }
}

void read_codes(Format f, uint8_t* tile, int64_t offset, int64_t column, Group& group) {
  uint32_t w[8];
  if (f == Format::Q8_0) {
    for (int j = 0; j < 8; ++j) w[j] = dword(tile, offset, kColumns * j + column);
  } else if (layout::low_bits(f) == 2) {
    for (int j = 0; j < 8; ++j) w[j] = dword(tile, offset + 64 * (j / 4), column) >> 2 * (j % 4) & 0x03030303U;
  } else {
    for (int j = 0; j < 8; ++j) w[j] = dword(tile, offset, kColumns * (j % 4) + column) >> j / 4 * 4 & 0x0F0F0F0FU;
  }
  if (layout::high_bits(f) == 1) {
    const uint32_t h = dword(tile, offset + layout::high_place(f), column);
    for (int j = 0; j < 8; ++j) w[j] |= (h >> j & 0x01010101U) << layout::low_bits(f);
  } else if (layout::high_bits(f) == 2) {
    for (int j = 0; j < 8; ++j) {
      w[j] |= (dword(tile, offset + 256 + 64 * (j / 4), column) >> 2 * (j % 4) & 0x03030303U) << 4;
    }
  }
  std::memcpy(group.codes, w, sizeof w);
}

// The bytes of scales and minimums, where a format has some.
void write_scales(Format f, const Group& group, uint8_t* tile, const layout::GroupPlace& place, int64_t g,
                  int64_t column) {
  uint8_t* scale = tile + place.scale + column;
  switch (f) {
    case Format::Q2_K:
      for (int half = 0; half < 2; ++half) {
        scale[kColumns * half] = static_cast<uint8_t>(group.scale[half] | group.minimum[half] << 4);
      }
      break;
    case Format::Q3_K:
      for (int half = 0; half < 2; ++half) {
        const int six_bits = static_cast<int8_t>(group.scale[half]) + 32;
        *scale |= static_cast<uint8_t>((six_bits & 15) << 4 * half);
        tile[place.minimum + column] |= static_cast<uint8_t>(six_bits >> 4 << (g % 2 * 4 + 2 * half));
      }
      break;
    case Format::Q4_K:
    case Format::Q5_K:
      *scale = group.scale[0];
      tile[place.minimum + column] = group.minimum[0];
      break;
    case Format::Q6_K:
      scale[0] = group.scale[0];
      scale[kColumns] = group.scale[1];
      break;
    case Format::IQ4_XS:
    case Format::MXFP4: *scale = group.scale[0]; break;
    default: break;
  }
}

void read_scales(Format f, const uint8_t* tile, const layout::GroupPlace& place, int64_t g, int64_t column,
                 Group& group) {
  const uint8_t* scale = tile + place.scale + column;
  const uint8_t* minimum = tile + place.minimum + column;
  for (int half = 0; half < 2; ++half) {
    switch (f) {
      case Format::Q2_K:
        group.scale[half] = scale[kColumns * half] & 15;
        group.minimum[half] = scale[kColumns * half] >> 4;
        break;
      case Format::Q3_K:
        group.scale[half] = static_cast<uint8_t>(
            ((*scale >> 4 * half & 15) | (*minimum >> (g % 2 * 4 + 2 * half) & 3) << 4) - 32);
        break;
      case Format::Q4_K:
      case Format::Q5_K:
        group.scale[half] = *scale;
        group.minimum[half] = *minimum;
        break;
      case Format::Q6_K: group.scale[half] = scale[kColumns * half]; break;
      case Format::IQ4_XS:
      case Format::MXFP4: group.scale[half] = *scale; break;
      default: break;
    }
  }
}

void write_group(const Matrix& matrix, const Group& group, uint8_t* tile, int64_t g, int64_t column) {
  const Format f = matrix.format;
  const auto place = layout::group_place(f, matrix.in, g);
  write_codes(f, group, tile, place.codes, column);
  if (f != Format::MXFP4) half(tile, d_offset(f, place), column) = group.d;
  if (layout::has_minimum(f)) half(tile, m_offset(f, place), column) = group.m;
  write_scales(f, group, tile, place, g, column);
}

void read_packed_group(const Matrix& matrix, uint8_t* tile, int64_t g, int64_t column, Group& group) {
  const Format f = matrix.format;
  const auto place = layout::group_place(f, matrix.in, g);
  read_codes(f, tile, place.codes, column, group);
  if (f != Format::MXFP4) group.d = half(tile, d_offset(f, place), column);
  if (layout::has_minimum(f)) group.m = half(tile, m_offset(f, place), column);
  read_scales(f, tile, place, g, column, group);
}

void pack_by_groups(const Matrix& matrix, const uint8_t* rows, int64_t columns, uint8_t* tile) {
  const int64_t stride = row_bytes(matrix.format, matrix.in);
  for (int64_t g = 0; g < matrix.in / layout::kGroup; ++g) {
    for (int64_t c = 0; c < columns; ++c) {
      Group group{};
      read_group(matrix.format, rows + c * stride, g, group);
      write_group(matrix, group, tile, g, c);
    }
  }
}

// Place of number k of a column in a tile of floats, in numbers.
int64_t float_place(Format f, int64_t k, int64_t column) {
  return f == Format::BF16 ? (k / 2 * kColumns + column) * 2 + k % 2 : k * kColumns + column;
}

ActKind activations_of(Format format) {
  if (!layout::is_float(format)) return ActKind::Int8;
  return format == Format::BF16 && kernels().bf16_dot ? ActKind::BF16 : ActKind::F32;
}

}  // namespace

Format format_from_name(std::string_view name) {
  for (int i = 0; i < kNumFormats; ++i) {
    if (kFormats[i].name == name) return static_cast<Format>(i);
  }
  throw std::invalid_argument("unknown weight format '" + std::string(name) + "'");
}

std::string_view format_name(Format format) { return info(format).name; }

int64_t block_width(Format format) { return info(format).width; }

int64_t row_bytes(Format format, int64_t in) { return in / info(format).width * info(format).bytes; }

Matrix matrix_without_data(Format format, int64_t out, int64_t in) {
  constexpr int64_t kMost = int64_t{1} << 30;  // of either side: bytes then fit 64 bits
  if (out <= 0 || in <= 0 || out > kMost || in > kMost) {
    throw std::invalid_argument("a matrix needs sides in [1, 2^30], got " + std::to_string(out) + " x " +
                                std::to_string(in));
  }
  if (in % block_width(format) != 0) {
    throw std::invalid_argument(std::string(info(format).name) + " needs rows of a multiple of " +
                                std::to_string(block_width(format)) + " numbers, got " + std::to_string(in));
  }
  return {format, out, in, activations_of(format), layout::tile_bytes(format, in), {}};
}

Matrix make_matrix(Format format, int64_t out, int64_t in) {
  Matrix matrix = matrix_without_data(format, out, in);
  matrix.data = AlignedBuffer::in_huge_pages(static_cast<size_t>(matrix.num_tiles() * matrix.tile_bytes));
  return matrix;
}

void pack_tiles(Matrix& matrix, const uint8_t* raw, int64_t begin, int64_t end) {
  const int64_t stride = row_bytes(matrix.format, matrix.in);
  for (int64_t t = begin; t < end; ++t) {
    const int64_t columns = std::min(kColumns, matrix.out - t * kColumns);
    const uint8_t* rows = raw + t * kColumns * stride;
    uint8_t* tile = matrix.data.data() + t * matrix.tile_bytes;
    if (!pack_by_dwords(matrix, rows, columns, tile)) pack_by_groups(matrix, rows, columns, tile);
  }
}

void dequantise_row(const Matrix& matrix, int64_t row, float* y) {
  const int64_t column = row % kColumns;
  auto* tile = const_cast<uint8_t*>(matrix.data.data()) + row / kColumns * matrix.tile_bytes;
  if (layout::is_float(matrix.format)) {
    for (int64_t k = 0; k < matrix.in; ++k) {
      read_floats(matrix.format, tile, float_place(matrix.format, k, column), 1, y + k);
    }
    return;
  }
  for (int64_t g = 0; g < matrix.in / layout::kGroup; ++g) {
    Group group{};
    read_packed_group(matrix, tile, g, column, group);
    dequantise_group(matrix.format, group, y + g * layout::kGroup);
  }
}

}  // namespace outpace
