// Reads the project's Python objects (Segment, Row, DecoderLayer) into ours, checking types and ranges.
#pragma once

#include <nanobind/nanobind.h>

#include <vector>

#include "choose.h"
#include "network.h"
#include "plan.h"

namespace outpace {

// All throw std::invalid_argument, or Python's own error where an attribute is missing.
SegmentSpec read_segment(nanobind::handle segment);
std::shared_ptr<const Layer> read_layer(nanobind::handle layer);
std::vector<int32_t> read_ints(nanobind::handle sequence, const char* what, int64_t least, int64_t most);

// Rows of one `sample` call. Many of them share their SamplingParams and their prompt, which are then read once.
// Keeps the masks alive that its rows point to.
class ChoiceRows {
 public:
  ChoiceRows(nanobind::handle rows, int64_t vocabulary);
  const std::vector<ChoiceRow>& rows() const { return rows_; }

 private:
  void read(nanobind::handle row, int64_t vocabulary);
  const uint32_t* read_mask(nanobind::object mask, int64_t vocabulary);

  std::vector<ChoiceRow> rows_;
  std::vector<nanobind::object> kept_;
  nanobind::object params_, prompt_;  // of the row before
};

}  // namespace outpace
