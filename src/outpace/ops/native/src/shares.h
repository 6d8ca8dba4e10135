// One thread's share of the phases that layers are made of. Threads meet at a barrier between one phase and the next.
#pragma once

#include <memory>
#include <vector>

#include "network.h"

namespace outpace {

inline float* room(std::vector<float>& buffer, int64_t size) {
  if (static_cast<int64_t>(buffer.size()) < size) buffer.resize(static_cast<size_t>(size));
  return buffer.data();
}

inline const float* data_or_null(const std::shared_ptr<const FloatVector>& vector) {
  return vector == nullptr ? nullptr : vector->data();
}

// Norms (if the layer says so) and rotates q and k, and stores k and v: each row and key/value head apart.
void rope_store_share(const Member& m, float* q, float* k, const float* v, const Layer& layer, KvStore& kv,
                      const Plan& plan);

// y = activation(gate) * up, one row [n]. May be in place.
void activate(Activation activation, const float* gate, const float* up, float* y, int64_t n);

// silu(gate(x)) * up(x) into `gate`: each thread the columns that it takes.
void gate_up_share(Member& m, const Operand& x, int64_t rows, const Layer& layer, float* gate, float* up);

// y = x + the product (+ bias, if it is not null), where `projected` takes the product.
void residual_share(Member& m, const Operand& operand, int64_t rows, const Matrix& weight, const float* bias,
                    const float* x, float* projected, float* y);

}  // namespace outpace
