// Reads the project's Python objects (Segment, SamplingBatch, DecoderLayer) into ours, checking types and ranges.
#pragma once

#include <nanobind/nanobind.h>

#include <vector>

#include "guess.h"
#include "network.h"
#include "plan.h"
#include "sample.h"

namespace outpace {

// All throw std::invalid_argument, or Python's own error where an attribute is missing.
SegmentSpec read_segment(nanobind::handle segment);
std::shared_ptr<const Layer> read_layer(nanobind::handle layer);
std::shared_ptr<const Guesser> read_guesser(nanobind::handle layer, const HeadRows& head);
Activation read_activation(nanobind::handle name);
std::vector<int32_t> read_ints(nanobind::handle sequence, const char* what, int64_t minimum, int64_t maximum);

// A SamplingBatch of Python's, field by field: None, or arrays whose types and shapes are checked here. Keeps them
// alive.
class PythonBatch {
 public:
  PythonBatch(int64_t num_rows, nanobind::handle params, nanobind::handle seeds, nanobind::handle sample_indices,
              nanobind::handle positions, nanobind::handle streams, nanobind::handle prompts, nanobind::handle outputs,
              nanobind::handle masks, nanobind::handle has_mask, nanobind::handle bias_tokens, nanobind::handle biases);
  const SamplingBatch& batch() const { return batch_; }

 private:
  template <class T>
  const T* read(nanobind::handle array, const char* name, std::initializer_list<int64_t> shape);
  template <class T>
  Ragged<T> read_ragged(nanobind::handle ragged, const char* name);

  SamplingBatch batch_;
  std::vector<nanobind::object> kept_;
};

}  // namespace outpace
