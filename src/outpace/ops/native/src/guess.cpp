#include "guess.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "shares.h"

namespace outpace {
namespace {

void expect(bool fits, const char* what) {
  if (!fits) throw std::invalid_argument(std::string("guess layer: ") + what);
}

// The plan of the scored rows alone: they see what they saw.
Plan only_scored(const Plan& plan) {
  Plan result = plan;
  result.rows.clear();
  result.scored.clear();
  for (PlanSegment& segment : result.segments) segment.num_rows = 0;
  for (const int32_t r : plan.scored) {
    PlanSegment& segment = result.segments[plan.rows[r].segment];
    if (segment.num_rows++ == 0) segment.first_row = result.num_rows();
    result.rows.push_back(plan.rows[r]);
  }
  return result;
}

void copy_rows(const float* x, const std::vector<int32_t>& rows, int64_t begin, int64_t end, int64_t width, float* y) {
  for (int64_t i = begin; i < end; ++i) {
    std::memcpy(y + i * width, x + rows[i] * width, static_cast<size_t>(width) * sizeof(float));
  }
}

// Products of the head with the states of the segments, as the threads share them out.
struct HeadProduct {
  const Operand* states;
  Product product;
  int64_t rows;
};

void multiply_all(Member& m, const std::vector<HeadProduct>& products) {
  int64_t total = 0, most = INT64_MAX;
  for (const HeadProduct& p : products) {
    total += p.product.matrix->num_tiles();
    most = std::min(most, tiles_together(*p.product.matrix));
  }
  m.take_pieces(total, most, [&](int64_t begin, int64_t end) {
    int64_t offset = 0;
    for (const HeadProduct& p : products) {
      const Matrix& w = *p.product.matrix;
      const int64_t from = std::max<int64_t>(begin - offset, 0), to = std::min(end - offset, w.num_tiles());
      offset += w.num_tiles();
      if (from < to) matmul_tiles(w, p.states->of(m, w.act), p.product.y, p.product.stride, from, to);
    }
  });
}

}  // namespace

void check_guesser(const Guesser& g) {
  const HeadShape& h = g.layer.heads;
  check_mlp(g.layer);
  const int64_t width = g.layer.width(), queries = h.num_heads * h.width, keys = h.num_kv_heads * h.width;
  const int64_t inputs = g.embedding->in + width;
  const auto fits = [](const std::shared_ptr<const FloatVector>& vector, int64_t n) {
    return vector == nullptr || vector->size() == n;
  };
  expect(g.layer.wq->out == queries && g.layer.wq->in == inputs, "wq must be [num_heads * head_width, inputs]");
  expect(g.layer.wk->out == keys && g.layer.wk->in == inputs, "wk must be [num_kv_heads * head_width, inputs]");
  expect(g.layer.wv->out == keys && g.layer.wv->in == inputs, "wv must be [num_kv_heads * head_width, inputs]");
  expect(g.layer.wo->out == width && g.layer.wo->in == queries, "wo must be [width, num_heads * head_width]");
  expect(g.layer.attn_norm->size() == g.embedding->in, "attn_norm must be as long as the embedding is wide");
  expect(g.feature_norm->size() == width && g.layer.mlp_norm->size() == width && g.head_norm->size() == width,
         "norms must have the layer's width");
  expect(fits(g.layer.bq, queries) && fits(g.layer.bk, keys) && fits(g.layer.bv, keys),
         "biases must be as long as their projections are wide");
  expect(fits(g.bo, width), "bo must be as long as wo is wide");
  expect(g.head.matrix->in == width, "the head must be as wide as the layer");
  expect(g.head.largest_token < g.embedding->out, "the head's tokens must have rows in the embedding");
}

void fuse(int threads, Workspace& w, const Fusion& fusion, const std::vector<TapRow>& rows, int64_t width, float* y) {
  const Matrix& fc = *fusion.fc;
  const auto count = static_cast<int64_t>(rows.size()), taps = fc.in / width;
  Operand& operand = w.operands[0];
  operand.resize(kinds_of(fc.act), count, fc.in, threads);
  float* projected = room(w.projected, count * fc.out);
  Pool::get().run(threads, [&](Member& m) {
    operand.fill_made(m, [&](int64_t r, float* made) {
      for (int64_t tap = 0; tap < taps; ++tap) {
        float* to = made + tap * width;
        if (fusion.norms.empty()) {
          std::memcpy(to, rows[r][tap], static_cast<size_t>(width) * sizeof(float));
        } else {
          row_kernels().rms_norm(rows[r][tap], fusion.norms[tap]->data(), to, width, fusion.eps);
        }
      }
      if (fusion.joint_norm != nullptr) {
        row_kernels().rms_norm(made, fusion.joint_norm->data(), made, fc.in, fusion.eps);
      }
    });
    multiply(m, operand, count, {{&fc, nullptr, fusion.adds_last ? projected : y}},
             [&](const Product&, int64_t first, int64_t last) {
               for (int64_t r = 0; fusion.adds_last && r < count; ++r) {
                 const int64_t at = r * fc.out + first;
                 const float* tap = fusion.norms.empty() ? rows[r].back() : operand.made(m, r) + fc.in - width;
                 row_kernels().add(tap + first, projected + at, y + at, last - first);
               }
             });
  });
}

void guess(int threads, Workspace& w, const GuessInput& in, const GuessOutput& out) {
  const Guesser& g = *in.guesser;
  const Layer& layer = g.layer;
  const HeadShape& h = layer.heads;
  const Plan& plan = *in.plan;
  const int64_t rows = plan.num_rows(), width = layer.width(), embedded = g.embedding->in, inputs = embedded + width;
  const int64_t queries = h.num_heads * h.width, keys = h.num_kv_heads * h.width, inner = layer.gate->out;
  const auto scored = static_cast<int64_t>(plan.scored.size());
  const bool all = scored == rows;
  const Plan picked = all ? Plan{} : only_scored(plan);
  const Plan& sub = all ? plan : picked;

  float *q = room(w.q, rows * queries), *k = room(w.k, rows * keys), *v = room(w.v, rows * keys);
  float *attended = room(w.attended, scored * queries), *projected = room(w.projected, scored * width);
  float *gate = room(w.gate, scored * inner), *up = room(w.up, scored * inner);
  float* picked_q = all ? q : room(w.picked, scored * queries);
  float* residual = room(w.residual, scored * width);
  copy_rows(in.features, plan.scored, 0, scored, width, residual);

  auto& [attn_in, attn_out, mlp_in, mlp_inner] = w.operands;
  attn_in.resize(kinds_of(layer.wq->act) | kinds_of(layer.wk->act) | kinds_of(layer.wv->act), rows, inputs, threads);
  attn_out.resize(kinds_of(layer.wo->act), scored, queries, threads);
  mlp_in.resize(kinds_of(layer.gate->act) | kinds_of(layer.up->act), scored, width, threads);
  mlp_inner.resize(kinds_of(layer.down->act), scored, inner, threads);
  if (scored > 0) w.attend.set(h, *in.kv, sub, picked_q, attended, threads);

  // The head: the rows that all have, and for each segment its own, of the segment's states alone.
  const auto num_segments = static_cast<int64_t>(plan.segments.size());
  const int64_t fixed = g.head.matrix->out;
  int64_t stride = fixed;
  for (const HeadRows* own : *in.further) {
    if (own != nullptr) stride = std::max(stride, fixed + own->matrix->out);
  }
  stride = (stride + 15) / 16 * 16;
  float* logits = room(w.logits, scored * stride);
  if (static_cast<int64_t>(w.heads.size()) < num_segments + 1) w.heads.resize(num_segments + 1);
  w.heads[0].resize(kinds_of(g.head.matrix->act), scored, width, threads);
  std::vector<HeadProduct> products;
  if (scored > 0) products.push_back({&w.heads[0], {g.head.matrix.get(), nullptr, logits, stride}, scored});
  for (int64_t s = 0; s < num_segments; ++s) {
    const HeadRows* own = (*in.further)[s];
    const PlanSegment& segment = sub.segments[s];
    if (own == nullptr || scored == 0 || segment.num_rows == 0) continue;
    w.heads[s + 1].resize(kinds_of(own->matrix->act), segment.num_rows, width, threads);
    float* y = logits + segment.first_row * stride + fixed;
    products.push_back({&w.heads[s + 1], {own->matrix.get(), nullptr, y, stride}, segment.num_rows});
  }
  if (static_cast<int>(w.samplers.size()) < threads) w.samplers.resize(threads);

  Pool::get().run(threads, [&](Member& m) {
    const RowKernels& kernels = row_kernels();
    attn_in.fill_made(m, [&](int64_t r, float* y) {
      dequantise_row(*g.embedding, plan.rows[r].token, y);
      kernels.rms_norm(y, layer.attn_norm->data(), y, embedded, layer.eps);
      kernels.rms_norm(in.features + r * width, g.feature_norm->data(), y + embedded, width, layer.eps);
    });
    multiply(m, attn_in, rows,
             {{layer.wq.get(), data_or_null(layer.bq), q},
              {layer.wk.get(), data_or_null(layer.bk), k},
              {layer.wv.get(), data_or_null(layer.bv), v}});
    m.barrier();
    rope_store_share(m, q, k, v, layer, *in.kv, plan);
    if (scored == 0) return;
    if (g.residual_is_normed) {
      const auto [begin, end] = m.share(scored);
      for (int64_t r = begin; r < end; ++r) {
        float* row = residual + r * width;
        kernels.rms_norm(row, g.feature_norm->data(), row, width, layer.eps);
      }
    }
    m.barrier();
    if (!all) {
      const auto [begin, end] = m.share(scored);
      copy_rows(q, plan.scored, begin, end, queries, picked_q);
      m.barrier();
    }
    w.attend.run(m);
    m.barrier();
    attn_out.fill(m, attended, queries);
    residual_share(m, attn_out, scored, *layer.wo, data_or_null(g.bo), residual, projected, out.states);
    m.barrier();
    mlp_in.fill_normed(m, out.states, width, layer.mlp_norm->data(), layer.eps);
    gate_up_share(m, mlp_in, scored, layer, gate, up);
    m.barrier();
    mlp_inner.fill(m, gate, inner);
    residual_share(m, mlp_inner, scored, *layer.down, nullptr, out.states, projected, out.states);
    m.barrier();
    w.heads[0].fill_normed(m, out.states, width, g.head_norm->data(), layer.eps);
    for (int64_t s = 0; s < num_segments; ++s) {
      const PlanSegment& segment = sub.segments[s];
      if ((*in.further)[s] == nullptr || segment.num_rows == 0) continue;
      w.heads[s + 1].fill_normed(m, out.states + segment.first_row * width, width, g.head_norm->data(), layer.eps);
    }
    multiply_all(m, products);
    m.barrier();
    const auto [begin, end] = m.share(scored);
    for (int64_t r = begin; r < end; ++r) {
      const HeadRows* own = (*in.further)[sub.rows[r].segment];
      const Columns columns{g.head.tokens, own == nullptr ? Tokens{} : Tokens{own->tokens}, g.embedding->out};
      const Best best{out.tokens + r * in.k, out.logprobs + r * in.k, out.scores + r * in.k};
      sample_columns(w.samplers[m.index], logits + r * stride, columns, *in.batch, r, in.k, best);
      if (!g.output_is_normed) continue;
      float* row = out.states + r * width;
      kernels.rms_norm(row, g.head_norm->data(), row, width, layer.eps);
    }
  });
}

}  // namespace outpace
