#include "network.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

#include "float_mode.h"
#include "shares.h"

namespace outpace {

void rope_store_share(const Member& m, float* q, float* k, const float* v, const Layer& layer, KvStore& kv,
                      const Plan& plan) {
  const RowKernels& kernels = row_kernels();
  const HeadShape& h = layer.heads;
  const KvLayout& layout = kv.layout();
  const int64_t half = h.width / 2;
  const auto turn = [&](float* head, const FloatVector* norm, int64_t position, const float* factors) {
    if (norm != nullptr) kernels.rms_norm(head, norm->data(), head, h.width, layer.eps);
    kernels.rotate(head, layer.rope->cos(position), layer.rope->sin(position), half);
    if (factors == nullptr) return;
    for (int64_t c = 0; c < h.width; ++c) head[c] *= factors[c];
  };
  const auto [begin, end] = m.share(plan.num_rows() * h.num_kv_heads);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t r = i / h.num_kv_heads, g = i % h.num_kv_heads;
    const PlanRow& row = plan.rows[r];
    const float* query_factors = layer.key_scale == nullptr ? nullptr : layer.key_scale->data() + g * h.width;
    const float* key_factors = layer.key_scale == nullptr ? nullptr : layer.key_shrink->data() + g * h.width;
    for (int64_t head = g * h.group(); head < (g + 1) * h.group(); ++head) {
      float* query = q + (r * h.num_heads + head) * h.width;
      turn(query, layer.q_norm.get(), row.position, query_factors);
      if (layer.growth_rate == 0) continue;
      const float growth = layer.query_growth(row.position);
      for (int64_t c = 0; c < h.width; ++c) query[c] *= growth;
    }
    float* key = k + i * h.width;
    turn(key, layer.k_norm.get(), row.position, key_factors);
    const int32_t block = plan.tables[plan.segments[row.segment].table + row.slot / plan.block_size];
    uint8_t* head = kv.blocks()[block] + h.layer * layout.layer_bytes + g * layout.head_bytes;
    store_slot(layout, head, row.slot % plan.block_size, key, v + i * h.width);
  }
}

void activate(Activation activation, const float* gate, const float* up, float* y, int64_t n) {
  const RowKernels& kernels = row_kernels();
  switch (activation) {
    case Activation::Silu: return kernels.silu_mul(gate, up, y, n);
    case Activation::GeluTanh: return kernels.gelu_mul(gate, up, y, n);
    case Activation::ClampedSwiglu: return kernels.clamped_swiglu(gate, up, y, n);
  }
}

void gate_up_share(Member& m, const Operand& x, int64_t rows, const Layer& layer, float* gate, float* up) {
  const int64_t width = layer.gate->out, tiles = rows == 0 ? 0 : layer.gate->num_tiles();
  m.take_pieces(tiles, tiles_together(*layer.gate), [&](int64_t begin, int64_t end) {
    matmul_tiles(*layer.gate, x.of(m, layer.gate->act), gate, width, begin, end);
    matmul_tiles(*layer.up, x.of(m, layer.up->act), up, width, begin, end);
    const int64_t first = begin * kTileWidth, last = std::min(width, end * kTileWidth);
    for (int64_t r = 0; r < rows; ++r) {
      float* row = gate + r * width + first;
      activate(layer.activation, row, up + r * width + first, row, last - first);
    }
  });
}

void residual_share(Member& m, const Operand& operand, int64_t rows, const Matrix& weight, const float* bias,
                    const float* x, float* projected, float* y) {
  multiply(m, operand, rows, {{&weight, bias, projected}}, [&](const Product& p, int64_t first, int64_t last) {
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t at = r * p.matrix->out + first;
      row_kernels().add(x + at, projected + at, y + at, last - first);
    }
  });
}

namespace {

// Fewer threads for work that is smaller than waking them.
int threads_for(int threads, int64_t numbers) { return numbers < (1 << 14) ? 1 : threads; }

void expect(bool fits, const char* what) {
  if (!fits) throw std::invalid_argument(std::string("decoder layer: ") + what);
}

bool has_length(const std::shared_ptr<const FloatVector>& vector, int64_t n) {
  return vector == nullptr || vector->size() == n;
}

}  // namespace

void check_heads(const Layer& layer) {
  const HeadShape& h = layer.heads;
  expect(h.layer >= 0, "index must not be negative");
  expect(h.num_heads >= 1 && h.num_kv_heads >= 1 && h.num_heads % h.num_kv_heads == 0,
         "num_heads must be a multiple of num_kv_heads, both at least 1");
  expect(h.width >= 2 && h.width % 2 == 0, "head_width must be even and positive");
  expect(has_length(layer.q_norm, h.width) && has_length(layer.k_norm, h.width),
         "q_norm and k_norm must be [head_width]");
  expect(has_length(layer.key_scale, h.num_kv_heads * h.width), "key_scale must be [num_kv_heads * head_width]");
  expect(has_length(layer.sinks, h.num_heads), "sinks must be [num_heads]");
  expect(std::isfinite(layer.growth_rate) && layer.growth_length >= 1,
         "query_growth must be a finite rate and a length of at least 1");
  expect(layer.rope->half() * 2 == h.width, "the rotary table must have head_width / 2 frequencies");
}

void check_experts(const Layer& layer) {
  expect(layer.experts != nullptr, "experts is missing");
  check_experts(*layer.experts);
}

void check_mlp(const Layer& layer) {
  expect(layer.gate != nullptr, "gate is missing");
  const int64_t width = layer.width();
  expect(layer.up->in == width && layer.up->out == layer.gate->out, "up must have the shape of gate");
  expect(layer.down->out == width && layer.down->in == layer.gate->out, "down must be [width, feed-forward]");
}

void check_layer(const Layer& layer) {
  const HeadShape& h = layer.heads;
  layer.experts == nullptr ? check_mlp(layer) : check_experts(layer);
  const int64_t width = layer.width(), queries = h.num_heads * h.width, keys = h.num_kv_heads * h.width;
  expect(layer.wq->out == queries && layer.wq->in == width, "wq must be [num_heads * head_width, width]");
  expect(layer.wk->out == keys && layer.wk->in == width, "wk must be [num_kv_heads * head_width, width]");
  expect(layer.wv->out == keys && layer.wv->in == width, "wv must be [num_kv_heads * head_width, width]");
  expect(layer.wo->out == width && layer.wo->in == queries, "wo must be [width, num_heads * head_width]");
  expect(layer.attn_norm != nullptr && layer.mlp_norm != nullptr, "a fused layer has norms before both its parts");
  expect(has_length(layer.attn_norm, width) && has_length(layer.mlp_norm, width), "norms must have the model's width");
  expect(has_length(layer.bq, queries) && has_length(layer.bk, keys) && has_length(layer.bv, keys) &&
             has_length(layer.bo, width),
         "biases must be as long as their projections are wide");
}

void check_plan(const Layer& layer, const KvStore& kv, const Plan& plan) {
  const KvLayout& layout = kv.layout();
  const HeadShape& h = layer.heads;
  expect(h.layer < layout.num_layers, "its index is past the layers of the KV storage");
  expect(h.num_kv_heads == layout.num_kv_heads && h.width == layout.width, "its heads are not those of the KV storage");
  expect(plan.block_size == layout.block_size, "the plan was made for another block size than the KV storage");
  if (plan.largest_block >= kv.num_blocks()) {
    throw std::invalid_argument("a block table names block " + std::to_string(plan.largest_block) +
                                ", the KV storage has " + std::to_string(kv.num_blocks()));
  }
  for (const PlanSegment& s : plan.segments) {
    const int64_t first = h.first_seen(s.start);
    if (s.start < h.first) {
      throw std::invalid_argument("position " + std::to_string(s.start) + " sees nothing: the layer's first is " +
                                  std::to_string(h.first));
    }
    if (first < s.first_live) {
      throw std::invalid_argument("position " + std::to_string(first) + " is seen, but its block was freed");
    }
  }
  layer.rope->ensure(plan.last_position);
}

void add_rows(const float* a, const float* b, float* y, int64_t size) {
  const FloatMode mode;
  row_kernels().add(a, b, y, size);
}

void silu_rows(const float* x, float* y, int64_t size) {
  const FloatMode mode;
  std::fill_n(y, size, 1.0f);
  row_kernels().silu_mul(x, y, y, size);
}

void scale_rows(int threads, const float* x, float factor, float* y, int64_t size) {
  Pool::get().run(threads_for(threads, size), [&](Member& m) {
    const auto [begin, end] = m.share(size);
    row_kernels().scale(x + begin, factor, y + begin, end - begin);
  });
}

void soft_cap_rows(int threads, const float* x, float cap, float* y, int64_t size) {
  Pool::get().run(threads_for(threads, size), [&](Member& m) {
    const auto [begin, end] = m.share(size);
    row_kernels().soft_cap(x + begin, cap, y + begin, end - begin);
  });
}

void gate_rows(int threads, Activation activation, const float* gate, const float* up, float* y, int64_t size) {
  Pool::get().run(threads_for(threads, size), [&](Member& m) {
    const auto [begin, end] = m.share(size);
    activate(activation, gate + begin, up + begin, y + begin, end - begin);
  });
}

void norm_rows(int threads, const float* x, const FloatVector& weight, float eps, float* y, int64_t rows) {
  const int64_t cols = weight.size();
  Pool::get().run(threads_for(threads, rows * cols), [&](Member& m) {
    const auto [begin, end] = m.share(rows);
    for (int64_t r = begin; r < end; ++r) row_kernels().rms_norm(x + r * cols, weight.data(), y + r * cols, cols, eps);
  });
}

void embed_rows(int threads, const Matrix& weight, const Plan& plan, float* y) {
  Pool::get().run(threads_for(threads, plan.num_rows() * weight.in), [&](Member& m) {
    const auto [begin, end] = m.share(plan.num_rows());
    for (int64_t r = begin; r < end; ++r) dequantise_row(weight, plan.rows[r].token, y + r * weight.in);
  });
}

void linear(int threads, Workspace& w, const float* x, int64_t rows, const Matrix& weight, const FloatVector* bias,
            float* y) {
  w.operands[0].resize(kinds_of(weight.act), rows, weight.in, threads);
  Pool::get().run(threads, [&](Member& m) {
    w.operands[0].fill(m, x, weight.in);
    multiply(m, w.operands[0], rows, {{&weight, bias == nullptr ? nullptr : bias->data(), y}});
  });
}

void rope_store(int threads, float* q, float* k, const float* v, const Layer& layer, KvStore& kv, const Plan& plan) {
  const int64_t numbers = plan.num_rows() * layer.heads.num_heads * layer.heads.width;
  Pool::get().run(threads_for(threads, numbers),
                  [&](Member& m) { rope_store_share(m, q, k, v, layer, kv, plan); });
}

void attend(int threads, Workspace& w, const float* q, const Layer& layer, const KvStore& kv, const Plan& plan,
            float* y) {
  w.attend.set(layer.heads, kv, plan, q, y, threads);
  Pool::get().run(threads, [&](Member& m) { w.attend.run(m); });
}

void gated_mlp(int threads, Workspace& w, const float* x, int64_t rows, const Layer& layer, float* y) {
  Operand &input = w.operands[2], &inner = w.operands[3];
  input.resize(kinds_of(layer.gate->act) | kinds_of(layer.up->act), rows, layer.width(), threads);
  inner.resize(kinds_of(layer.down->act), rows, layer.down->in, threads);
  float* gate = room(w.gate, rows * layer.gate->out);
  float* up = room(w.up, rows * layer.gate->out);
  Pool::get().run(threads, [&](Member& m) {
    input.fill(m, x, layer.width());
    gate_up_share(m, input, rows, layer, gate, up);
    m.barrier();
    inner.fill(m, gate, layer.gate->out);
    multiply(m, inner, rows, {{layer.down.get(), nullptr, y}});
  });
}

void experts(int threads, Workspace& w, const float* x, int64_t rows, const Layer& layer, float* y) {
  const int64_t width = layer.width();
  Operand& input = w.operands[2];
  w.experts.set(*layer.experts, layer.activation, rows);
  input.resize(w.experts.operand_kinds(), rows, width, threads);
  Pool::get().run(threads, [&](Member& m) {
    input.fill(m, x, width);
    w.experts.run(m, input, [&](int64_t r) { return x + r * width; }, y);
  });
}

void decoder_layer(int threads, Workspace& w, const float* x, const Layer& layer, KvStore& kv, const Plan& plan,
                   float* y) {
  const HeadShape& h = layer.heads;
  const int64_t rows = plan.num_rows(), width = layer.width();
  const int64_t queries = h.num_heads * h.width, keys = h.num_kv_heads * h.width;
  const int64_t inner = layer.experts == nullptr ? layer.gate->out : 0;
  float *q = room(w.q, rows * queries), *k = room(w.k, rows * keys), *v = room(w.v, rows * keys);
  float *attended = room(w.attended, rows * queries), *projected = room(w.projected, rows * width);
  float *gate = room(w.gate, rows * inner), *up = room(w.up, rows * inner);
  auto& [attn_in, attn_out, mlp_in, mlp_inner] = w.operands;
  attn_in.resize(kinds_of(layer.wq->act) | kinds_of(layer.wk->act) | kinds_of(layer.wv->act), rows, width, threads);
  attn_out.resize(kinds_of(layer.wo->act), rows, queries, threads);
  if (layer.experts != nullptr) {
    w.experts.set(*layer.experts, layer.activation, rows);
    mlp_in.resize(w.experts.operand_kinds(), rows, width, threads);
  } else {
    mlp_in.resize(kinds_of(layer.gate->act) | kinds_of(layer.up->act), rows, width, threads);
    mlp_inner.resize(kinds_of(layer.down->act), rows, inner, threads);
  }
  w.attend.set(h, kv, plan, q, attended, threads);

  Pool::get().run(threads, [&](Member& m) {
    attn_in.fill_normed(m, x, width, layer.attn_norm->data(), layer.eps);
    multiply(m, attn_in, rows,
             {{layer.wq.get(), data_or_null(layer.bq), q},
              {layer.wk.get(), data_or_null(layer.bk), k},
              {layer.wv.get(), data_or_null(layer.bv), v}});
    m.barrier();
    rope_store_share(m, q, k, v, layer, kv, plan);
    m.barrier();
    w.attend.run(m);
    m.barrier();
    attn_out.fill(m, attended, queries);
    residual_share(m, attn_out, rows, *layer.wo, data_or_null(layer.bo), x, projected, y);
    m.barrier();
    mlp_in.fill_normed(m, y, width, layer.mlp_norm->data(), layer.eps);
    if (layer.experts != nullptr) {
      w.experts.run(m, mlp_in, [&](int64_t r) { return mlp_in.made(m, r); }, projected);
      m.barrier();
      const auto [begin, end] = m.share(rows * width);
      row_kernels().add(y + begin, projected + begin, y + begin, end - begin);
      return;
    }
    gate_up_share(m, mlp_in, rows, layer, gate, up);
    m.barrier();
    mlp_inner.fill(m, gate, inner);
    residual_share(m, mlp_inner, rows, *layer.down, nullptr, y, projected, y);
  });
}

void logits(int threads, Workspace& w, const float* x, const FloatVector& norm, float eps, const Matrix& weight,
            const Plan& plan, float* y) {
  const auto rows = static_cast<int64_t>(plan.scored.size());
  float* scored = room(w.projected, rows * weight.in);
  for (int64_t r = 0; r < rows; ++r) {
    std::memcpy(scored + r * weight.in, x + plan.scored[r] * weight.in, static_cast<size_t>(weight.in) * sizeof(float));
  }
  w.operands[0].resize(kinds_of(weight.act), rows, weight.in, threads);
  Pool::get().run(threads, [&](Member& m) {
    w.operands[0].fill_normed(m, scored, weight.in, norm.data(), eps);
    multiply(m, w.operands[0], rows, {{&weight, nullptr, y}});
  });
}

}  // namespace outpace
