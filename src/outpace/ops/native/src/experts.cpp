#include "experts.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "network.h"
#include "product.h"
#include "shares.h"

namespace outpace {
namespace {

constexpr int64_t kColumnsTogether = 256;  // of a row, where its experts' results are added up

void expect(bool fits, const char* what) {
  if (!fits) throw std::invalid_argument(std::string("experts: ") + what);
}

bool are_all(const Matrices& matrices, size_t count, int64_t out, int64_t in) {
  return matrices.size() == count && std::all_of(matrices.begin(), matrices.end(), [&](const auto& matrix) {
           return matrix != nullptr && matrix->out == out && matrix->in == in;
         });
}

bool are_all(const Vectors& vectors, size_t count, int64_t size) {
  return vectors.empty() || (vectors.size() == count && std::all_of(vectors.begin(), vectors.end(), [&](const auto& v) {
                               return v != nullptr && v->size() == size;
                             }));
}

ActKinds all_kinds(const Matrices& matrices) {
  ActKinds kinds = 0;
  for (const auto& matrix : matrices) kinds |= kinds_of(matrix->act);
  return kinds;
}

void add_bias(const Vectors& biases, int64_t expert, float* y, int64_t rows, int64_t stride, int64_t first,
              int64_t last) {
  if (biases.empty()) return;
  for (int64_t r = 0; r < rows; ++r) {
    float* row = y + r * stride + first;
    row_kernels().add(row, biases[expert]->data() + first, row, last - first);
  }
}

// Writes the `num_chosen` largest logits' experts, the best first and ties to the lowest id, and their weights.
void choose_experts(const Experts& experts, const float* logits, int32_t* chosen, float* weights) {
  const auto count = static_cast<int32_t>(experts.router->out);
  for (int64_t rank = 0; rank < experts.num_chosen; ++rank) {
    int32_t best = -1;
    for (int32_t e = 0; e < count; ++e) {
      if (std::find(chosen, chosen + rank, e) != chosen + rank) continue;
      if (best < 0 || logits[e] > logits[best]) best = e;
    }
    chosen[rank] = best;
    weights[rank] = logits[best];
  }
  const double largest = weights[0];
  const auto& exp_sum = row_kernels().exp_sum;
  const double total =
      experts.is_normalised ? exp_sum(weights, largest, experts.num_chosen) : exp_sum(logits, largest, count);
  for (int64_t rank = 0; rank < experts.num_chosen; ++rank) {
    weights[rank] = static_cast<float>(exp_sum(weights + rank, largest, 1) / total);
  }
}

}  // namespace

ActKinds Experts::input_kinds() const { return all_kinds(gate) | all_kinds(up); }

ActKinds Experts::inner_kinds() const { return all_kinds(down); }

void check_experts(const Experts& experts) {
  const auto count = static_cast<size_t>(experts.router->out);
  const int64_t width = experts.width();
  expect(experts.gate.size() == count && experts.gate[0] != nullptr, "gate must have a matrix for each row of router");
  const int64_t inner = experts.inner();
  expect(are_all(experts.gate, count, inner, width), "gate must be [feed-forward, width] of every expert");
  expect(are_all(experts.up, count, inner, width), "up must have the shape of gate, for every expert");
  expect(are_all(experts.down, count, width, inner), "down must be [width, feed-forward] of every expert");
  expect(experts.router_bias == nullptr || experts.router_bias->size() == experts.router->out,
         "router_bias must have a number for each row of router");
  expect(are_all(experts.gate_bias, count, inner) && are_all(experts.up_bias, count, inner) &&
             are_all(experts.down_bias, count, width),
         "biases must be as long as their products are wide, and of every expert or of none");
  expect(experts.num_chosen >= 1 && experts.num_chosen <= experts.router->out,
         "num_chosen must be in [1, number of experts]");
}

void ExpertsPass::set(const Experts& experts, Activation activation, int64_t rows) {
  experts_ = &experts;
  activation_ = activation;
  rows_ = rows;
  const int64_t num_pairs = rows * experts.num_chosen;
  room(logits_, rows * experts.router->out);
  room(weights_, num_pairs);
  room(gate_, num_pairs * experts.inner());
  room(up_, num_pairs * experts.inner());
  room(out_, num_pairs * experts.width());
  chosen_.resize(static_cast<size_t>(num_pairs));
  place_.resize(static_cast<size_t>(num_pairs));
  group_of_.resize(static_cast<size_t>(num_pairs));
  row_of_.resize(static_cast<size_t>(num_pairs));
}

ActKinds ExpertsPass::operand_kinds() const {
  return kinds_of(experts_->router->act) | (rows_ == 1 ? experts_->input_kinds() : 0);
}

void ExpertsPass::route(Member& m, const Operand& x) {
  multiply(m, x, rows_, {{experts_->router.get(), data_or_null(experts_->router_bias), logits_.data()}});
}

void ExpertsPass::choose() {
  for (int64_t r = 0; r < rows_; ++r) {
    choose_experts(*experts_, logits_.data() + r * experts_->router->out, chosen_.data() + r * experts_->num_chosen,
                   weights_.data() + r * experts_->num_chosen);
  }
}

// Puts the rows that chose the same expert together.
void ExpertsPass::gather() {
  const int64_t chosen = experts_->num_chosen;
  std::vector<int64_t>& next = next_;  // first, how many pairs the expert before has
  next.assign(static_cast<size_t>(experts_->router->out) + 1, 0);
  for (const int32_t expert : chosen_) ++next[static_cast<size_t>(expert) + 1];
  groups_.clear();
  for (size_t expert = 0; expert + 1 < next.size(); ++expert) {
    const int64_t count = next[expert + 1];
    next[expert + 1] += next[expert];
    if (count == 0) continue;
    for (int64_t i = 0; i < count; ++i) group_of_[next[expert] + i] = static_cast<int64_t>(groups_.size());
    groups_.push_back({static_cast<int64_t>(expert), next[expert], count});
  }
  for (int64_t i = 0; i < static_cast<int64_t>(chosen_.size()); ++i) {
    const int64_t pair = next[chosen_[i]]++;
    place_[i] = pair;
    row_of_[pair] = i / chosen;
  }
  if (inners_.size() < groups_.size()) {
    inputs_.resize(groups_.size());
    inners_.resize(groups_.size());
  }
  for (size_t g = 0; g < groups_.size(); ++g) {
    if (rows_ > 1) inputs_[g].resize(experts_->input_kinds(), groups_[g].count, experts_->width());
    inners_[g].resize(experts_->inner_kinds(), groups_[g].count, experts_->inner());
  }
}

void ExpertsPass::Forms::resize(ActKinds which, int64_t rows, int64_t in) {
  for (const ActKind kind : kAllKinds) {
    if (which & kinds_of(kind)) kinds[static_cast<int>(kind)].resize(kind, rows, in);
  }
}

// x: the numbers of the pair's row.
void ExpertsPass::prepare_pair(std::vector<Forms>& forms, ActKinds which, int64_t pair, const float* x) {
  const int64_t group = group_of_[pair], row = pair - groups_[group].first;
  for (const ActKind kind : kAllKinds) {
    if (which & kinds_of(kind)) prepare(forms[group].kinds[static_cast<int>(kind)], x, 0, row, row + 1);
  }
}

// Calls body(group, first tile, last tile) for the tiles that this thread takes of all groups' matrices, which have the
// shape of `like`.
template <class Body>
void ExpertsPass::take_tiles(Member& m, const Matrix& like, Body body) {
  const int64_t tiles = like.num_tiles();
  m.take_pieces(tiles * static_cast<int64_t>(groups_.size()), tiles_together(like), [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end;) {
      const int64_t group = at / tiles, last = std::min(end, (group + 1) * tiles);
      body(groups_[group], group, at - group * tiles, last - group * tiles);
      at = last;
    }
  });
}

void ExpertsPass::gate_up(Member& m, const Operand& x) {
  const int64_t inner = experts_->inner();
  take_tiles(m, *experts_->gate[0], [&](const Group& group, int64_t index, int64_t begin, int64_t end) {
    const Matrix &gate = *experts_->gate[group.expert], &up = *experts_->up[group.expert];
    const auto input = [&](ActKind kind) -> const Activations& {
      return rows_ == 1 ? x.of(m, kind) : inputs_[index].kinds[static_cast<int>(kind)];
    };
    float *g = gate_.data() + group.first * inner, *u = up_.data() + group.first * inner;
    matmul_tiles(gate, input(gate.act), g, inner, begin, end);
    matmul_tiles(up, input(up.act), u, inner, begin, end);
    const int64_t first = begin * kTileWidth, last = std::min(inner, end * kTileWidth);
    add_bias(experts_->gate_bias, group.expert, g, group.count, inner, first, last);
    add_bias(experts_->up_bias, group.expert, u, group.count, inner, first, last);
    for (int64_t r = 0; r < group.count; ++r) {
      float* row = g + r * inner + first;
      activate(activation_, row, u + r * inner + first, row, last - first);
    }
  });
}

void ExpertsPass::down(Member& m) {
  const int64_t width = experts_->width();
  take_tiles(m, *experts_->down[0], [&](const Group& group, int64_t index, int64_t begin, int64_t end) {
    const Matrix& down = *experts_->down[group.expert];
    float* y = out_.data() + group.first * width;
    matmul_tiles(down, inners_[index].kinds[static_cast<int>(down.act)], y, width, begin, end);
    add_bias(experts_->down_bias, group.expert, y, group.count, width, begin * kTileWidth,
             std::min(width, end * kTileWidth));
  });
}

// Adds up what a row's experts return, the best of them first.
void ExpertsPass::combine(const Member& m, float* y) const {
  const int64_t width = experts_->width(), chosen = experts_->num_chosen;
  const int64_t pieces = (width + kColumnsTogether - 1) / kColumnsTogether;
  const auto [begin, end] = m.share(rows_ * pieces);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t row = i / pieces, first = i % pieces * kColumnsTogether;
    const int64_t count = std::min(kColumnsTogether, width - first);
    float* to = y + row * width + first;
    for (int64_t rank = 0; rank < chosen; ++rank) {
      const float* from = out_.data() + place_[row * chosen + rank] * width + first;
      const float weight = weights_[row * chosen + rank];
      if (rank == 0) {
        row_kernels().scale(from, weight, to, count);
      } else {
        row_kernels().add_scaled(from, weight, to, count);
      }
    }
  }
}

}  // namespace outpace
