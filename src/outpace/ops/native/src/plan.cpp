#include "plan.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace outpace {
namespace {

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument("segment: " + what); }

void check(const SegmentSpec& s, int64_t block_size) {
  const auto num_tokens = static_cast<int64_t>(s.tokens.size());
  const auto num_nodes = static_cast<int64_t>(s.parents.size()), num_stored = static_cast<int64_t>(s.stored.size());
  const int64_t end = s.start + num_stored + num_tokens;
  if (num_tokens == 0) refuse("it has no tokens; leave it out");
  if (s.start < 0 || end > INT32_MAX) refuse("start " + std::to_string(s.start) + " is out of range");
  if (num_nodes > num_tokens) {
    refuse(std::to_string(num_nodes) + " parents, but only " + std::to_string(num_tokens) + " tokens");
  }
  if (num_nodes > 0 && s.full) refuse("a full segment has no draft: parents must be empty");
  if (num_nodes == num_tokens && s.start == 0) refuse("a draft needs a token before it");
  if (num_stored > 0 && num_nodes < num_tokens) refuse("a draft that has stored nodes has no pending tokens");
  for (int64_t i = 0; i < num_stored + num_nodes; ++i) {
    const int32_t parent = i < num_stored ? s.stored[i] : s.parents[i - num_stored];
    if (parent < -1 || parent >= i) {
      refuse("parent " + std::to_string(parent) + " of draft node " + std::to_string(i) + " is not in [-1, " +
             std::to_string(i) + ")");
    }
  }
  if (s.num_scored < 0 || s.num_scored > num_tokens) {
    refuse("num_scored is " + std::to_string(s.num_scored) + ", allowed is [0, " + std::to_string(num_tokens) + "]");
  }
  const int64_t needed = (end + block_size - 1) / block_size;
  if (static_cast<int64_t>(s.blocks.size()) < needed) {
    refuse("a block table of " + std::to_string(s.blocks.size()) + " blocks of " + std::to_string(block_size) +
           " slots does not cover " + std::to_string(end) + " tokens");
  }
  for (int64_t b = s.start / block_size; b < needed; ++b) {
    if (s.blocks[b] < 0) refuse("block " + std::to_string(b) + " of the table is to be written, but was freed");
  }
}

// What draft node `node` sees: the chain, then its ancestors and itself. The part of the path that lies in consecutive
// slots behind the chain counts as chain, so a thin tree has no paths at all.
void add_node(Plan& plan, const PlanSegment& segment, int64_t node, const std::vector<int32_t>& parents, PlanRow& row) {
  std::vector<int32_t> path;
  for (int64_t n = node; n >= 0; n = parents[n]) path.push_back(static_cast<int32_t>(segment.root + n));
  std::reverse(path.begin(), path.end());
  row.position = static_cast<int32_t>(segment.root + path.size() - 1);
  row.last = row.position + 1;
  size_t straight = 0;
  while (straight < path.size() && path[straight] == static_cast<int32_t>(segment.root + straight)) ++straight;
  row.contiguous = static_cast<int32_t>(segment.root + straight);
  row.path = static_cast<int32_t>(plan.paths.size());
  plan.paths.insert(plan.paths.end(), path.begin() + static_cast<int64_t>(straight), path.end());
}

}  // namespace

void add_segment(Plan& plan, const SegmentSpec& s) {
  check(s, plan.block_size);
  const auto num_tokens = static_cast<int64_t>(s.tokens.size());
  PlanSegment segment{};
  segment.first_row = plan.num_rows();
  segment.num_rows = num_tokens;
  segment.start = s.start;
  segment.root = s.start + num_tokens - static_cast<int64_t>(s.parents.size());
  const auto num_stored = static_cast<int64_t>(s.stored.size());
  std::vector<int32_t> parents = s.stored;
  parents.insert(parents.end(), s.parents.begin(), s.parents.end());
  segment.end = s.start + num_stored + num_tokens;
  segment.table = static_cast<int64_t>(plan.tables.size());
  const int64_t num_blocks = (segment.end + plan.block_size - 1) / plan.block_size;
  plan.tables.insert(plan.tables.end(), s.blocks.begin(), s.blocks.begin() + num_blocks);
  int64_t first_live = num_blocks;
  while (first_live > 0 && s.blocks[first_live - 1] >= 0) --first_live;
  segment.first_live = first_live * plan.block_size;
  for (int64_t b = first_live; b < num_blocks; ++b)
    plan.largest_block = std::max<int64_t>(plan.largest_block, s.blocks[b]);

  for (int64_t i = 0; i < num_tokens; ++i) {
    PlanRow row{};
    row.token = s.tokens[i];
    row.slot = static_cast<int32_t>(s.start + num_stored + i);
    row.segment = static_cast<int32_t>(plan.segments.size());
    row.position = row.slot;
    row.contiguous = row.last = static_cast<int32_t>(s.full ? segment.end : s.start + i + 1);
    if (row.slot >= segment.root) add_node(plan, segment, row.slot - segment.root, parents, row);
    plan.last_position = std::max<int64_t>(plan.last_position, row.position);
    plan.smallest_token = std::min<int64_t>(plan.smallest_token, row.token);
    plan.largest_token = std::max<int64_t>(plan.largest_token, row.token);
    if (i >= num_tokens - s.num_scored) plan.scored.push_back(static_cast<int32_t>(plan.rows.size()));
    plan.rows.push_back(row);
  }
  plan.segments.push_back(segment);
}

}  // namespace outpace
