// Products of one operand with one or more matrices, the tiles shared out over threads by their bytes.
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
};

// Computes y = x W^T + bias of all products, each thread its tiles. Then calls after(product, first, last), on the same
// thread, for the columns [first, last) that the thread has just computed.
template <class After>
void multiply(const Member& m, const Operand& x, int64_t rows, std::initializer_list<Product> products, After after) {
  int64_t total = 0;
  for (const Product& p : products) total += p.matrix->num_tiles() * p.matrix->tile_bytes;
  const auto [low, high] = m.share(total);
  int64_t offset = 0;
  for (const Product& p : products) {
    const Matrix& w = *p.matrix;
    // A tile belongs to the thread in whose share its first byte lies.
    const auto first_tile = [&](int64_t byte) {
      const int64_t inside = std::max<int64_t>(byte - offset, 0);
      return std::min((inside + w.tile_bytes - 1) / w.tile_bytes, w.num_tiles());
    };
    const int64_t begin = first_tile(low), end = first_tile(high);
    offset += w.num_tiles() * w.tile_bytes;
    if (begin >= end || rows == 0) continue;
    matmul_tiles(w, x.of(m, w.act), p.y, w.out, begin, end);
    const int64_t first = begin * kTileWidth, last = std::min(w.out, end * kTileWidth);
    if (p.bias != nullptr) {
      for (int64_t r = 0; r < rows; ++r) {
        row_kernels().add(p.y + r * w.out + first, p.bias + first, p.y + r * w.out + first, last - first);
      }
    }
    after(p, first, last);
  }
}

inline void multiply(const Member& m, const Operand& x, int64_t rows, std::initializer_list<Product> products) {
  multiply(m, x, rows, products, [](const Product&, int64_t, int64_t) {});
}

}  // namespace outpace
