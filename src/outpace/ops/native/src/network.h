// A decoder layer and its parts over packed weights, each one job of the thread pool.
// Specification: outpace/ops/compose.py (compose_decoder_layer) over outpace/ops/reference/network.py.
#pragma once

#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

#include "attend.h"
#include "experts.h"
#include "operand.h"
#include "plan.h"
#include "product.h"
#include "rope.h"
#include "sample.h"

namespace outpace {

// A norm weight or a bias.
class FloatVector {
 public:
  FloatVector(const float* begin, const float* end) : values_(begin, end) {}
  const float* data() const { return values_.data(); }
  int64_t size() const { return static_cast<int64_t>(values_.size()); }

 private:
  std::vector<float> values_;
};

enum class Activation { Silu, GeluTanh, ClampedSwiglu };

// What a Python DecoderLayer says, as handles that the layer keeps alive.
struct Layer {
  HeadShape heads;
  float eps;
  Activation activation;
  std::shared_ptr<const Matrix> wq, wk, wv, wo;
  std::shared_ptr<const Matrix> gate, up, down;  // null where the layer has experts
  std::shared_ptr<const Experts> experts;        // else null
  std::shared_ptr<const FloatVector> attn_norm, mlp_norm, bq, bk, bv, bo, sinks, q_norm, k_norm;  // may be null
  // Powers of two by which queries are multiplied after rope, and their reciprocals, for the keys; or both null.
  std::shared_ptr<const FloatVector> key_scale, key_shrink;
  std::shared_ptr<Rope> rope;
  double growth_rate = 0;  // of queries with their position: QueryGrowth in ops/layers.py; 0: they do not grow
  int64_t growth_length = 1;

  float query_growth(int64_t position) const {
    return static_cast<float>(1 + growth_rate * std::log(1.0 + static_cast<double>(position / growth_length)));
  }
  int64_t width() const { return experts == nullptr ? gate->in : experts->width(); }
};

// Throw std::invalid_argument, naming the handle, where the shapes do not fit together: those that attention needs,
// those of the gated MLP, those of the experts, and all.
void check_heads(const Layer& layer);
void check_mlp(const Layer& layer);
void check_experts(const Layer& layer);
void check_layer(const Layer& layer);

// The memory of a pass between ops; reused from call to call.
struct Workspace {
  Operand operands[4];
  AttendPass attend;
  ExpertsPass experts;
  SamplerMemories samplers;
  std::vector<float> q, k, v, attended, gate, up, projected;
  std::vector<float> picked, residual, logits;  // of `guess`
  std::vector<Operand> heads;
};

// All of these take x of [rows, ...] row after row; x and y do not overlap. Shapes were checked.
void add_rows(const float* a, const float* b, float* y, int64_t size);
void silu_rows(const float* x, float* y, int64_t size);
void norm_rows(int threads, const float* x, const FloatVector& weight, float eps, float* y, int64_t rows);
void scale_rows(int threads, const float* x, float factor, float* y, int64_t size);
void soft_cap_rows(int threads, const float* x, float cap, float* y, int64_t size);
// y = activation(gate) * up.
void gate_rows(int threads, Activation activation, const float* gate, const float* up, float* y, int64_t size);
void embed_rows(int threads, const Matrix& weight, const Plan& plan, float* y);
void linear(int threads, Workspace& w, const float* x, int64_t rows, const Matrix& weight, const FloatVector* bias,
            float* y);
// q and k are changed: their heads are normed and rotated.
void rope_store(int threads, float* q, float* k, const float* v, const Layer& layer, KvStore& kv, const Plan& plan);
void attend(int threads, Workspace& w, const float* q, const Layer& layer, const KvStore& kv, const Plan& plan,
            float* y);
void gated_mlp(int threads, Workspace& w, const float* x, int64_t rows, const Layer& layer, float* y);
void experts(int threads, Workspace& w, const float* x, int64_t rows, const Layer& layer, float* y);
void decoder_layer(int threads, Workspace& w, const float* x, const Layer& layer, KvStore& kv, const Plan& plan,
                   float* y);
void logits(int threads, Workspace& w, const float* x, const FloatVector& norm, float eps, const Matrix& weight,
            const Plan& plan, float* y);

// Throws std::invalid_argument if the plan's blocks or positions are outside what the layer and the storage have.
void check_plan(const Layer& layer, const KvStore& kv, const Plan& plan);

}  // namespace outpace
