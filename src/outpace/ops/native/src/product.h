// Products of one operand with one or more matrices: threads take tiles until none is left.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "operand.h"

namespace outpace {

struct Product {
  const Matrix* matrix;
  const float* bias;  // [out], or null
  float* y;           // [rows, out]
  int64_t stride = 0;  // from one row of y to the next; 0: out
};

// Tiles that a thread takes at a time: little enough to share work out evenly, enough to stream, and an even number,
// since many rows take two at once.
inline int64_t tiles_together(const Matrix& w) { return std::max<int64_t>(1, (16 << 10) / w.tile_bytes) * 2; }

// Computes y = x W^T + bias of all products (of one width), each thread the tiles that it takes. Then calls
// after(product, first, last), on the same thread, for the columns [first, last) that the thread has just computed.
// Threads meet at a barrier before the next call.
template <class After>
void multiply(Member& m, const Operand& x, int64_t rows, std::initializer_list<Product> products, After after) {
  int64_t total = 0, most = INT64_MAX;
  for (const Product& p : products) {
    total += p.matrix->num_tiles();
    most = std::min(most, tiles_together(*p.matrix));
  }
  if (rows == 0) total = 0;
  m.take_pieces(total, most, [&](int64_t begin, int64_t end) {
    int64_t offset = 0;
    for (const Product& p : products) {
      const Matrix& w = *p.matrix;
      const int64_t tiles = w.num_tiles();
      const int64_t from = std::max<int64_t>(begin - offset, 0), to = std::min(end - offset, tiles);
      offset += tiles;
      if (from >= to) continue;
      const int64_t stride = p.stride == 0 ? w.out : p.stride;
      matmul_tiles(w, x.of(m, w.act), p.y, stride, from, to);
      const int64_t first = from * kTileWidth, last = std::min(w.out, to * kTileWidth);
      if (p.bias != nullptr) {
        for (int64_t r = 0; r < rows; ++r) {
          row_kernels().add(p.y + r * stride + first, p.bias + first, p.y + r * stride + first, last - first);
        }
      }
      after(p, first, last);
    }
  });
}

inline void multiply(Member& m, const Operand& x, int64_t rows, std::initializer_list<Product> products) {
  multiply(m, x, rows, products, [](const Product&, int64_t, int64_t) {});
}

}  // namespace outpace
