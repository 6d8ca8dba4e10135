// Attention of a whole batch: cuts it into tiles and ranges, which threads take in pieces, and merges what was cut.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "attention.h"
#include "plan.h"
#include "pool.h"

namespace outpace {

// The heads of one layer.
struct HeadShape {
  int64_t layer, num_heads, num_kv_heads, width;
  int64_t window;  // a token sees itself and window - 1 earlier positions; 0: all
  int64_t first;   // and none before this position
  float scale;     // of the products of queries and keys
  const float* sinks = nullptr;  // [num_heads] logits that take part in each softmax and have no value; null: none

  int64_t group() const { return num_heads / num_kv_heads; }
  int64_t first_seen(int64_t position) const {
    return window == 0 ? first : std::max(first, position - window + 1);
  }
};

class AttendPass {
 public:
  // Before the threads start: finds what there is to do and makes room for at most `threads`. q and y are [T, H * K].
  void set(const HeadShape& heads, const KvStore& kv, const Plan& plan, const float* q, float* y, int threads);

  // All threads call this; ends without a barrier.
  void run(Member& m);

 private:
  // Consecutive rows of a segment; `head` query rows meet one key/value head.
  struct Tile {
    int32_t segment, head;
    int64_t first_row, rows;
    int64_t first_range, num_ranges;  // ranges of kRange positions that some row sees
    int64_t ranges_before;            // of all tiles before this one
    int64_t partials;                 // where in partials_ its ranges' results begin, one after another
  };
  struct Worker {
    std::vector<float> q, state, partial, scratch;  // state: the result so far of the tile in hand
    std::vector<Seen> seen;
  };

  void add_tiles(int64_t segment, int64_t head);
  void run_tile(const Tile& tile, Worker& worker) const;
  void run_ranges(int64_t begin, int64_t end, Worker& worker);
  void merge(const Tile& tile, int64_t row);
  AttentionTile prepare(const Tile& tile, Worker& worker) const;
  void finish(const Tile& tile, int64_t row, const float* states) const;
  int64_t stride() const { return partial_stride(layout_->padded_width); }

  HeadShape heads_{};
  const KvLayout* layout_ = nullptr;
  uint8_t* const* blocks_ = nullptr;
  const Plan* plan_ = nullptr;
  const float* q_ = nullptr;
  float* y_ = nullptr;
  int64_t num_ranges_ = 0, num_rows_ = 0;  // of all tiles together
  bool may_cut_ = false;
  std::vector<Tile> tiles_;
  std::vector<Worker> workers_;
  std::vector<float> partials_;
};

}  // namespace outpace
