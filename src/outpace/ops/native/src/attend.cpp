#include "attend.h"

#include <algorithm>

#include "kernels/row_kernels.h"

namespace outpace {
namespace {

constexpr int64_t kTileQueries = 48;  // rows x heads that share each key and value that is read
constexpr int64_t kReadCost = 4;      // reading a range, in queries that meet it

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
  total_cost_ = 0;
  tiles_.clear();
  for (int64_t s = 0; s < static_cast<int64_t>(plan.segments.size()); ++s) {
    for (int64_t head = 0; head < heads.num_kv_heads; ++head) add_tiles(s, head);
  }
  int64_t queries = 0, ranges = 0, drafts = 0;
  for (const Tile& tile : tiles_) {
    queries = std::max(queries, tile.rows * heads.group());
    ranges = std::max(ranges, tile.num_ranges);
    const PlanSegment& segment = plan.segments[tile.segment];
    drafts = std::max(drafts, segment.end - segment.root);
  }
  if (static_cast<int>(workers_.size()) < threads) workers_.resize(threads);
  for (int t = 0; t < threads; ++t) {
    Worker& worker = workers_[t];
    reserve(worker.q, queries * heads.width);
    reserve(worker.state, queries * stride());
    reserve(worker.partial, queries * stride());
    reserve(worker.scratch, attention_scratch(queries, drafts));
    if (t > 0) reserve(worker.loose, (ranges - 1) * queries * stride());
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
    tile.range_cost = tile.rows * heads_.group() + kReadCost;
    total_cost_ += tile.num_ranges * tile.range_cost;
    tiles_.push_back(tile);
  }
}

// The ranges of a tile, whose costs begin at `offset`, that belong to the share [low, high): those that begin in it.
AttendPass::Piece AttendPass::piece_of(int64_t tile, int64_t offset, int64_t low, int64_t high) const {
  const Tile& t = tiles_[tile];
  const auto range = [&](int64_t cost) {
    const int64_t inside = std::max<int64_t>(cost - offset, 0);
    return std::min((inside + t.range_cost - 1) / t.range_cost, t.num_ranges);
  };
  return {tile, range(low), range(high)};
}

// Whether a tile is cut between some of `count` threads.
bool AttendPass::any_cut(int count) const {
  for (int t = 1; t < count; ++t) {
    const int64_t low = Member{t, count, nullptr}.share(total_cost_).begin;
    int64_t offset = 0;
    for (int64_t i = 0; i < static_cast<int64_t>(tiles_.size()) && offset < low; ++i) {
      const Piece piece = piece_of(i, offset, low, total_cost_);
      if (0 < piece.begin && piece.begin < piece.end) return true;
      offset += tiles_[i].num_ranges * tiles_[i].range_cost;
    }
  }
  return false;
}

void AttendPass::run(const Member& m) {
  Worker& worker = workers_[m.index];
  worker.loose_piece = worker.open_piece = {};
  const auto [low, high] = m.share(total_cost_);
  int64_t offset = 0;
  for (int64_t i = 0; i < static_cast<int64_t>(tiles_.size()) && offset < high; ++i) {
    const Piece piece = piece_of(i, offset, low, high);
    if (piece.begin < piece.end) run_piece(piece, worker);
    offset += tiles_[i].num_ranges * tiles_[i].range_cost;
  }
  if (!any_cut(m.count)) return;
  m.barrier();
  if (worker.open_piece.tile >= 0) close(m);
}

void AttendPass::run_piece(const Piece& piece, Worker& worker) {
  const Tile& tile = tiles_[piece.tile];
  const AttentionKernels& kernels = row_kernels().attention;
  const AttentionTile task = prepare(tile, worker);
  const auto begin_of = [&](int64_t range) { return (tile.first_range + range) * kRange; };
  if (piece.begin > 0) {
    worker.loose_piece = piece;
    float* to = worker.loose.data();
    for (int64_t r = piece.begin; r < piece.end; ++r, to += task.queries() * stride()) {
      kernels.range(task, begin_of(r), to, worker.scratch.data());
    }
    return;
  }
  kernels.range(task, begin_of(0), worker.state.data(), worker.scratch.data());
  for (int64_t r = 1; r < piece.end; ++r) {
    kernels.range(task, begin_of(r), worker.partial.data(), worker.scratch.data());
    kernels.merge(worker.state.data(), worker.partial.data(), task.queries(), layout_->padded_width);
  }
  if (piece.end == tile.num_ranges) {
    finish(tile, worker);
  } else {
    worker.open_piece = piece;
  }
}

// Merges what other threads did of the tile that this one began.
void AttendPass::close(const Member& m) {
  Worker& worker = workers_[m.index];
  const Tile& tile = tiles_[worker.open_piece.tile];
  const int64_t queries = tile.rows * heads_.group();
  for (int other = m.index + 1; other < m.count; ++other) {
    const Piece& piece = workers_[other].loose_piece;
    if (piece.tile != worker.open_piece.tile) continue;  // a thread whose share is less than a range has none
    for (int64_t r = 0; r < piece.end - piece.begin; ++r) {
      row_kernels().attention.merge(worker.state.data(), workers_[other].loose.data() + r * queries * stride(), queries,
                                    layout_->padded_width);
    }
  }
  finish(tile, worker);
}

AttentionTile AttendPass::prepare(const Tile& tile, Worker& worker) const {
  const int64_t group = heads_.group(), width = heads_.width, row_width = heads_.num_heads * width;
  worker.seen.clear();
  for (int64_t r = 0; r < tile.rows; ++r) {
    const PlanRow& row = plan_->rows[tile.first_row + r];
    worker.seen.push_back({heads_.first_seen(row.position), row.contiguous, row.last, plan_->paths.data() + row.path});
    const float* from = q_ + (tile.first_row + r) * row_width + tile.head * group * width;
    row_kernels().attention.load_queries(*layout_, from, group, heads_.scale, worker.q.data() + r * group * width);
  }
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

void AttendPass::finish(const Tile& tile, const Worker& worker) const {
  const int64_t group = heads_.group(), width = heads_.width;
  for (int64_t r = 0; r < tile.rows; ++r) {
    float* y = y_ + ((tile.first_row + r) * heads_.num_heads + tile.head * group) * width;
    for (int64_t i = 0; i < group; ++i) {
      const float* sink = heads_.sinks == nullptr ? nullptr : heads_.sinks + tile.head * group + i;
      row_kernels().attention.finish(worker.state.data() + (r * group + i) * stride(), y + i * width, width,
                                     layout_->padded_width, sink);
    }
  }
}

}  // namespace outpace
