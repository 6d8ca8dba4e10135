// What all kernels of a tile share.
#pragma once

#include "layout.h"

namespace outpace {
namespace {

constexpr int64_t kPrefetchAhead = 4096;  // bytes ahead in the stream of weights: measured in benchmarks/LOG.md

// Writes a part of a tile's columns of one row; columns from `cols` on do not exist.
template <class S>
[[gnu::always_inline]] inline void store_columns(float* y, int part, int64_t cols, typename S::Float v) {
  const int64_t first = part * S::kLanes;
  if (cols >= first + S::kLanes) {
    S::store(y + first, v);
    return;
  }
  float lanes[S::kLanes];
  S::store(lanes, v);
  for (int64_t c = first; c < cols; ++c) y[c] = lanes[c - first];
}

}  // namespace
}  // namespace outpace
