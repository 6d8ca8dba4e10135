#include "attend.h"

#include <algorithm>

#include "kernels/row_kernels.h"

namespace outpace {
namespace {

constexpr int64_t kTileQueries = 48;  // rows x heads that share each key and value that is read
constexpr int64_t kTilesEach = 4;     // with so many tiles for each thread, none is cut
constexpr int64_t kMostRanges = 4;    // that a thread takes at once of tiles that are cut

void reserve(std::vector<float>& buffer, int64_t size) {
  if (static_cast<int64_t>(buffer.size()) < size) buffer.resize(static_cast<size_t>(size));
}

}  // namespace

void AttendPass::set(const HeadShape& heads, const KvStore& kv, const Plan& plan, const float* q, float* y,
                     int threads) {
  heads_ = heads;
  layout_ = &kv.layout();
  blocks_ = kv.blocks();
  plan_ = &plan;
  q_ = q;
  y_ = y;
  num_ranges_ = num_rows_ = 0;
  tiles_.clear();
  for (int64_t s = 0; s < static_cast<int64_t>(plan.segments.size()); ++s) {
    for (int64_t head = 0; head < heads.num_kv_heads; ++head) add_tiles(s, head);
  }
  const auto num_tiles = static_cast<int64_t>(tiles_.size());
  may_cut_ = threads > 1 && num_tiles < kTilesEach * threads && num_tiles < num_ranges_;
  int64_t queries = 0, drafts = 0, partials = 0;
  for (Tile& tile : tiles_) {
    queries = std::max(queries, tile.rows * heads.group());
    const PlanSegment& segment = plan.segments[tile.segment];
    drafts = std::max(drafts, segment.end - segment.root);
    tile.partials = partials;
    partials += tile.num_ranges * tile.rows * heads.group() * stride();
  }
  if (may_cut_) reserve(partials_, partials);
  if (static_cast<int>(workers_.size()) < threads) workers_.resize(threads);
  for (int t = 0; t < threads; ++t) {
    Worker& worker = workers_[t];
    reserve(worker.q, queries * heads.width);
    reserve(worker.state, queries * stride());
    reserve(worker.partial, queries * stride());
    reserve(worker.scratch, attention_scratch(queries, drafts));
  }
}

void AttendPass::add_tiles(int64_t segment, int64_t head) {
  const PlanSegment& s = plan_->segments[segment];
  const int64_t most = std::max<int64_t>(1, kTileQueries / heads_.group());
  const int64_t num_tiles = (s.num_rows + most - 1) / most;
  for (int64_t i = 0; i < num_tiles; ++i) {
    Tile tile{};
    tile.segment = static_cast<int32_t>(segment);
    tile.head = static_cast<int32_t>(head);
    tile.first_row = s.first_row + s.num_rows * i / num_tiles;
    tile.rows = s.first_row + s.num_rows * (i + 1) / num_tiles - tile.first_row;
    int64_t first = INT64_MAX, last = 0;
    for (int64_t r = tile.first_row; r < tile.first_row + tile.rows; ++r) {
      first = std::min(first, heads_.first_seen(plan_->rows[r].position));
      last = std::max<int64_t>(last, plan_->rows[r].last);
    }
    tile.first_range = first / kRange;
    tile.num_ranges = (last + kRange - 1) / kRange - tile.first_range;
    tile.ranges_before = num_ranges_;
    num_ranges_ += tile.num_ranges;
    num_rows_ += tile.rows;
    tiles_.push_back(tile);
  }
}

void AttendPass::run(Member& m) {
  Worker& worker = workers_[m.index];
  const auto num_tiles = static_cast<int64_t>(tiles_.size());
  if (!may_cut_ || m.count == 1) {
    m.take_pieces(num_tiles, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) run_tile(tiles_[i], worker);
    });
    return;
  }
  const int64_t most = std::clamp<int64_t>(num_ranges_ / (kTilesEach * m.count), 1, kMostRanges);
  m.take_pieces(num_ranges_, most, [&](int64_t begin, int64_t end) { run_ranges(begin, end, worker); });
  m.barrier();
  const auto [begin, end] = m.share(num_rows_);
  int64_t before = 0;
  for (const Tile& tile : tiles_) {
    const int64_t last = std::min(end - before, tile.rows);
    for (int64_t row = std::max<int64_t>(begin - before, 0); row < last; ++row) merge(tile, row);
    before += tile.rows;
  }
}

void AttendPass::run_tile(const Tile& tile, Worker& worker) const {
  const AttentionKernels& kernels = row_kernels().attention;
  const AttentionTile task = prepare(tile, worker);
  for (int64_t r = 0; r < tile.num_ranges; ++r) {
    float* to = r == 0 ? worker.state.data() : worker.partial.data();
    kernels.range(task, (tile.first_range + r) * kRange, to, worker.scratch.data());
    if (r > 0) kernels.merge(worker.state.data(), to, task.queries(), layout_->padded_width);
  }
  const int64_t size = heads_.group() * stride();
  for (int64_t row = 0; row < tile.rows; ++row) finish(tile, row, worker.state.data() + row * size);
}

// Leaves the results of ranges, counted over all tiles, in partials_.
void AttendPass::run_ranges(int64_t begin, int64_t end, Worker& worker) {
  for (const Tile& tile : tiles_) {
    const int64_t first = std::max<int64_t>(begin - tile.ranges_before, 0);
    const int64_t last = std::min(end - tile.ranges_before, tile.num_ranges);
    if (first >= last) continue;
    const AttentionTile task = prepare(tile, worker);
    for (int64_t r = first; r < last; ++r) {
      float* to = partials_.data() + tile.partials + r * task.queries() * stride();
      row_kernels().attention.range(task, (tile.first_range + r) * kRange, to, worker.scratch.data());
    }
  }
}

// Merges the ranges of one row of a tile that was cut.
void AttendPass::merge(const Tile& tile, int64_t row) {
  const int64_t group = heads_.group(), size = tile.rows * group * stride();
  float* states = partials_.data() + tile.partials + row * group * stride();
  for (int64_t r = 1; r < tile.num_ranges; ++r) {
    row_kernels().attention.merge(states, states + r * size, group, layout_->padded_width);
  }
  finish(tile, row, states);
}

AttentionTile AttendPass::prepare(const Tile& tile, Worker& worker) const {
  const int64_t group = heads_.group(), width = heads_.width, row_width = heads_.num_heads * width;
  worker.seen.clear();
  for (int64_t r = 0; r < tile.rows; ++r) {
    const PlanRow& row = plan_->rows[tile.first_row + r];
    worker.seen.push_back({heads_.first_seen(row.position), row.contiguous, row.last, plan_->paths.data() + row.path});
  }
  row_kernels().attention.load_queries(*layout_, q_ + tile.first_row * row_width + tile.head * group * width, row_width,
                                       tile.rows, group, heads_.scale, worker.q.data());
  const PlanSegment& segment = plan_->segments[tile.segment];
  return {.layout = layout_,
          .blocks = blocks_,
          .table = plan_->tables.data() + segment.table,
          .head = heads_.layer * layout_->layer_bytes + tile.head * layout_->head_bytes,
          .seen = worker.seen.data(),
          .rows = tile.rows,
          .group = group,
          .draft_begin = segment.root,
          .draft_end = segment.end,
          .q = worker.q.data()};
}

// states: those of the row's queries, all ranges merged.
void AttendPass::finish(const Tile& tile, int64_t row, const float* states) const {
  const int64_t group = heads_.group(), width = heads_.width;
  float* y = y_ + ((tile.first_row + row) * heads_.num_heads + tile.head * group) * width;
  for (int64_t i = 0; i < group; ++i) {
    const float* sink = heads_.sinks == nullptr ? nullptr : heads_.sinks + tile.head * group + i;
    row_kernels().attention.finish(states + i * stride(), y + i * width, width, layout_->padded_width, sink);
  }
}

}  // namespace outpace
