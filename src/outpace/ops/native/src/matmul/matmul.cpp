// Loops over tiles and blocks of rows around the kernels of this process's instruction set.
#include "matmul.h"

#include <algorithm>
#include <cassert>
#include <cstring>

#include "kernels.h"
#include "layout.h"

namespace outpace {
namespace {

// Bytes of weights that stay in a core's second-level cache while all blocks of rows pass over them, where one thread has
// all tiles to itself. (Several take pieces that are smaller.)
constexpr int64_t kPanelBytes = 384 << 10;

// Blocks of rows of one Activations.
struct RowBlocks {
  int64_t rows, width, row_bytes;

  explicit RowBlocks(const Activations& a)
      : rows(a.rows()), width(kernels().row_block), row_bytes(layout::activation_row_bytes(a.kind(), a.in())) {}
  int64_t count() const { return (rows + width - 1) / width; }
  int64_t size(int64_t block) const { return std::min(width, rows - block * width); }
  int64_t offset(int64_t block) const { return block * width * row_bytes; }
};

// A number of tiles, rounded up so that none is left without a second one.
int64_t even(int64_t tiles) { return std::max<int64_t>(2, (tiles + 1) / 2 * 2); }

}  // namespace

void Activations::resize(ActKind kind, int64_t rows, int64_t in) {
  const auto bytes = static_cast<size_t>(rows * layout::activation_row_bytes(kind, in));
  if (bytes > buffer_.size()) buffer_ = AlignedBuffer(std::max(bytes, 2 * buffer_.size()));
  kind_ = kind;
  rows_ = rows;
  in_ = in;
}

void prepare(Activations& activations, const float* x, int64_t ldx, int64_t begin, int64_t end) {
  const RowBlocks blocks(activations);
  const PrepareKernel kernel = kernels().prepare[static_cast<int>(activations.kind())];
  for (int64_t r = begin; r < end; ++r) {
    const int64_t b = r / blocks.width;
    kernel(x + r * ldx, activations.in(), activations.data() + blocks.offset(b), r - b * blocks.width, blocks.size(b));
  }
}

void matmul_tiles(const Matrix& matrix, const Activations& activations, float* y, int64_t ldy, int64_t begin,
                  int64_t end) {
  assert(activations.kind() == matrix.act && activations.in() == matrix.in);
  const RowBlocks blocks(activations);
  const TileKernel* kernel = kernels().tile[static_cast<int>(matrix.format)];
  const PairKernel pair = kernels().pair[static_cast<int>(matrix.format)];
  const int64_t panel = blocks.count() > 1 ? even(kPanelBytes / matrix.tile_bytes) : end - begin;
  for (int64_t first = begin; first < end; first += panel) {
    const int64_t last = std::min(first + panel, end);
    for (int64_t b = 0; b < blocks.count(); ++b) {
      const uint8_t* rows = activations.data() + blocks.offset(b);
      float* y_block = y + b * blocks.width * ldy;
      int64_t t = first;
      if (pair != nullptr && pays_in_pairs(blocks.size(b))) {
        for (; t + 2 <= last && (t + 2) * kTileWidth <= matrix.out; t += 2) {
          pair(matrix.data.data() + t * matrix.tile_bytes, matrix.tile_bytes, matrix.in, rows, blocks.size(b),
               y_block + t * kTileWidth, ldy);
        }
      }
      for (; t < last; ++t) {
        kernel[blocks.size(b)](matrix.data.data() + t * matrix.tile_bytes, matrix.in, rows, y_block + t * kTileWidth,
                               ldy, std::min(kTileWidth, matrix.out - t * kTileWidth));
      }
    }
  }
}

uint64_t read_stream(const uint8_t* data, size_t bytes) {
  using Vector [[gnu::vector_size(16), gnu::may_alias]] = uint64_t;
  constexpr size_t kAhead = 4096, kStep = 256, kVectors = kStep / sizeof(Vector);
  Vector sum[kVectors] = {};
  size_t i = 0;
  for (; i + kStep <= bytes; i += kStep) {
    for (size_t line = 0; line < kStep; line += 64) __builtin_prefetch(data + i + line + kAhead);
#pragma GCC unroll 16
    for (size_t v = 0; v < kVectors; ++v) sum[v] ^= reinterpret_cast<const Vector*>(data + i)[v];
  }
  uint64_t digest = 0;
  for (; i < bytes; ++i) digest += data[i];
  for (const Vector& s : sum) digest ^= s[0] ^ s[1];
  return digest;
}

}  // namespace outpace
