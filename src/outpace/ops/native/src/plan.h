// A ragged batch of segments, flat: tokens, positions, slots, and what every row sees.
#pragma once

#include <cstdint>
#include <vector>

namespace outpace {

// One request's share of a pass, as outpace.types.Segment says it.
struct SegmentSpec {
  std::vector<int32_t> blocks;  // at least those that cover start + tokens.size()
  int64_t start = 0;
  std::vector<int32_t> tokens, parents, stored;
  int64_t num_scored = 0;
  bool full = false;
};

struct PlanSegment {
  int64_t first_row, num_rows;
  int64_t start, root;  // committed length; slot of the first draft node (behind the pending chain)
  int64_t end;          // slot behind the last row
  int64_t table;        // offset in Plan::tables
  int64_t first_live;   // slots from here on lie in blocks that were not freed
};

struct PlanRow {
  int32_t token;
  int32_t position;
  int32_t slot;  // logical, in the segment's block table
  int32_t segment;
  int32_t contiguous;  // it sees position p < contiguous in slot p
  int32_t last;        // and positions [contiguous, last) in the slots of `path`
  int32_t path;        // offset in Plan::paths
};

struct Plan {
  int64_t block_size = 0;
  std::vector<PlanSegment> segments;
  std::vector<PlanRow> rows;
  std::vector<int32_t> scored;  // rows that get logits
  std::vector<int32_t> tables;
  std::vector<int32_t> paths;
  int64_t last_position = -1;  // largest of all rows
  int64_t largest_block = -1;  // largest block that is read or written
  int64_t smallest_token = 0, largest_token = 0;

  int64_t num_rows() const { return static_cast<int64_t>(rows.size()); }
};

// Adds a segment. Throws std::invalid_argument, naming what is wrong, for anything that a Segment does not allow.
void add_segment(Plan& plan, const SegmentSpec& segment);

}  // namespace outpace
