// Experts: many gated MLPs of which each row takes a few. Specification: outpace/ops/reference/experts.py.
//
// A row's numbers come from that row and the experts that it chose, in the order of its own choice: rows that chose the
// same expert share one read of its matrices, and change no bit of each other. Only the matrices of chosen experts are
// read.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "operand.h"

namespace outpace {

class FloatVector;
enum class Activation;

using Matrices = std::vector<std::shared_ptr<const Matrix>>;
using Vectors = std::vector<std::shared_ptr<const FloatVector>>;

// What a Python Experts says, as handles.
struct Experts {
  std::shared_ptr<const Matrix> router;            // [E, D]
  std::shared_ptr<const FloatVector> router_bias;  // may be null
  Matrices gate, up, down;                         // E each
  Vectors gate_bias, up_bias, down_bias;           // E each, or none
  int64_t num_chosen;
  bool is_normalised;

  int64_t width() const { return router->in; }
  int64_t inner() const { return gate[0]->out; }
  // The forms in which the chosen experts read a row, and in which their last products read what lies between.
  ActKinds input_kinds() const;
  ActKinds inner_kinds() const;
};

// Throws std::invalid_argument, naming the handle, where the shapes do not fit together.
void check_experts(const Experts& experts);

// One layer's experts over the rows of a pass, in the phases of a job.
class ExpertsPass {
 public:
  // Before the threads start.
  void set(const Experts& experts, Activation activation, int64_t rows);

  // The forms of x that `run` wants.
  ActKinds operand_kinds() const;

  // All threads call this; ends without a barrier. x: the operand, filled; row(r): the same row as floats [D].
  // y [rows, D], which is read by nobody before.
  template <class Row>
  void run(Member& m, const Operand& x, Row row, float* y);

 private:
  // The pairs of a row and an expert that it chose stand expert by expert: [first, first + count) are one's.
  struct Group {
    int64_t expert, first, count;
  };
  struct Forms {
    Activations kinds[3];

    void resize(ActKinds which, int64_t rows, int64_t in);
  };

  void route(Member& m, const Operand& x);
  void choose();
  void gather();
  void prepare_pair(std::vector<Forms>& forms, ActKinds which, int64_t pair, const float* x);
  void gate_up(Member& m, const Operand& x);
  void down(Member& m);
  void combine(const Member& m, float* y) const;
  template <class Body>
  void take_tiles(Member& m, const Matrix& like, Body body);

  const Experts* experts_ = nullptr;
  Activation activation_{};
  int64_t rows_ = 0;
  std::vector<float> logits_, weights_, gate_, up_, out_;  // [T, E], [T, k], [pairs, F] twice, [pairs, D]
  std::vector<int32_t> chosen_;                            // [T, k]
  std::vector<int64_t> place_;                             // of [T, k], its pair
  std::vector<int64_t> row_of_, group_of_;                 // of each pair
  std::vector<int64_t> next_;                              // place of an expert's next pair, while they are gathered
  std::vector<Group> groups_;
  std::vector<Forms> inputs_, inners_;  // by group: what its first products read, and its last one
};

template <class Row>
void ExpertsPass::run(Member& m, const Operand& x, Row row, float* y) {
  route(m, x);
  m.barrier();
  if (m.index == 0) {
    choose();
    gather();
  }
  m.barrier();
  if (rows_ > 1) {
    const auto [begin, end] = m.share(static_cast<int64_t>(row_of_.size()));
    for (int64_t p = begin; p < end; ++p) prepare_pair(inputs_, experts_->input_kinds(), p, row(row_of_[p]));
    m.barrier();
  }
  gate_up(m, x);
  m.barrier();
  const auto [begin, end] = m.share(static_cast<int64_t>(row_of_.size()));
  for (int64_t p = begin; p < end; ++p) {
    prepare_pair(inners_, experts_->inner_kinds(), p, gate_.data() + p * experts_->inner());
  }
  m.barrier();
  down(m);
  m.barrier();
  combine(m, y);
}

}  // namespace outpace
