// Attention over the paged cache: what a tile of rows sees, and the kernels that compute it range by range.
//
// Specification: outpace/ops/reference/attention.py. Positions are cut into ranges of kRange at fixed places. A range's
// partial result (largest score, sum of weights, weighted sum of values) is computed from that range alone, and
// partials are merged in ascending order: the same operations for a row alone, in a tile, on a path of a tree or in a
// prefill.
#pragma once

#include <cstdint>

#include "kv.h"

namespace outpace {

constexpr int64_t kRange = 128;  // positions

// What one row sees: the positions [first, last), in that order.
struct Seen {
  int64_t first;       // moved up by a sliding window
  int64_t contiguous;  // position p < contiguous lies in slot p
  int64_t last;
  const int32_t* path;  // the slots of the positions [contiguous, last): draft nodes, from root to leaf
};

// Rows of one segment that meet one key/value head, each with `group` query heads.
struct AttentionTile {
  const KvLayout* layout;
  uint8_t* const* blocks;  // of the whole storage
  const int32_t* table;    // the segment's block table
  int64_t head;            // byte offset of the layer and head in a block
  const Seen* seen;        // [rows]
  int64_t rows, group;
  int64_t draft_begin, draft_end;  // the slots that paths may name
  const float* q;                  // of all rows, as load_queries made them

  int64_t queries() const { return rows * group; }
};

// A partial result for a query: the weighted sum [Kp], the largest score, the sum of weights; padded to a cache line.
// The largest score is -inf where nothing is seen.
constexpr int64_t partial_stride(int64_t padded_width) { return padded_width + 16; }

// Floats of scratch that `range` needs for a tile of this many queries and draft slots.
constexpr int64_t kScoreStride = kRange + 64;  // a vector of slots may begin before the range and end behind it
constexpr int64_t draft_stride(int64_t num_draft) { return (num_draft + 79) / 16 * 16; }
constexpr int64_t attention_scratch(int64_t queries, int64_t num_draft) {
  return queries * (kScoreStride + draft_stride(num_draft));
}

struct AttentionKernels {
  // Multiplies the queries [group][K] of rows, `stride` floats apart, by `scale` and puts them into the form that `range`
  // reads, K floats of room each.
  void (*load_queries)(const KvLayout& layout, const float* q, int64_t stride, int64_t rows, int64_t group, float scale,
                       float* to);
  // Computes the partials [queries][partial_stride] of positions [begin, begin + kRange).
  void (*range)(const AttentionTile& tile, int64_t begin, float* partials, float* scratch);
  // Merges the partials of a later range into `states`, query by query.
  void (*merge)(float* states, const float* partials, int64_t queries, int64_t padded_width);
  // y [width] = weighted sum / sum of weights, of one query. sink: a score that adds its weight to the sum; null: none.
  void (*finish)(const float* state, float* y, int64_t width, int64_t padded_width, const float* sink);
};

}  // namespace outpace
