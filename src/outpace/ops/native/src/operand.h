// Rows of x in every form that the matrices of a phase want them in.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/row_kernels.h"
#include "matmul/matmul.h"
#include "pool.h"

namespace outpace {

// A set of ActKind.
using ActKinds = unsigned;
inline ActKinds kinds_of(ActKind kind) { return 1u << static_cast<unsigned>(kind); }
constexpr ActKind kAllKinds[] = {ActKind::F32, ActKind::BF16, ActKind::Int8};

// The same preparation serves all matrices of a phase. Few rows are prepared by every thread for itself, which costs
// less than waiting for each other; many are shared out.
class Operand {
 public:
  // Before the threads start: makes room for rows [rows, in] in these forms.
  void resize(ActKinds kinds, int64_t rows, int64_t in, int threads) {
    kinds_ = kinds;
    rows_ = rows;
    in_ = in;
    private_ = rows <= kFewRows;
    const size_t num_copies = private_ ? static_cast<size_t>(threads) : 1;
    if (copies_.size() < num_copies) copies_.resize(num_copies);
    for (size_t i = 0; i < num_copies; ++i) {
      for (const ActKind kind : kAllKinds) {
        if (kinds & kinds_of(kind)) copies_[i].forms[static_cast<int>(kind)].resize(kind, rows, in);
      }
      copies_[i].normed.resize(static_cast<size_t>(rows * in));
    }
  }

  // All threads call this; afterwards each may use `of`. x is [rows, in], row r at x + r * stride.
  void fill(const Member& m, const float* x, int64_t stride) {
    fill_rows(m, [&](Copy& copy, int64_t begin, int64_t end) { prepare_rows(copy, x, stride, begin, end); });
  }

  // The same for the RMS norm of x.
  void fill_normed(const Member& m, const float* x, int64_t stride, const float* weight, float eps) {
    fill_rows(m, [&](Copy& copy, int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        row_kernels().rms_norm(x + r * stride, weight, copy.normed.data() + r * in_, in_, eps);
      }
      prepare_rows(copy, copy.normed.data(), in_, begin, end);
    });
  }

  // The same for rows that make(r, y) writes, [in] each.
  template <class Make>
  void fill_made(const Member& m, Make make) {
    fill_rows(m, [&](Copy& copy, int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) make(r, copy.normed.data() + r * in_);
      prepare_rows(copy, copy.normed.data(), in_, begin, end);
    });
  }

  // Row r as fill_normed or fill_made left it, [in].
  const float* made(const Member& m, int64_t r) const {
    return copies_[private_ ? m.index : 0].normed.data() + r * in_;
  }

  const Activations& of(const Member& m, ActKind kind) const {
    return copies_[private_ ? m.index : 0].forms[static_cast<int>(kind)];
  }

 private:
  static constexpr int64_t kFewRows = 4;

  struct Copy {
    Activations forms[3];
    std::vector<float> normed;
  };

  template <class Rows>
  void fill_rows(const Member& m, Rows rows) {
    if (private_) {
      rows(copies_[m.index], 0, rows_);
      return;
    }
    const auto [begin, end] = m.share(rows_);
    rows(copies_[0], begin, end);
    m.barrier();
  }

  void prepare_rows(Copy& copy, const float* x, int64_t stride, int64_t begin, int64_t end) {
    if (begin == end) return;
    for (const ActKind kind : kAllKinds) {
      if (kinds_ & kinds_of(kind)) prepare(copy.forms[static_cast<int>(kind)], x, stride, begin, end);
    }
  }

  ActKinds kinds_ = 0;
  int64_t rows_ = 0, in_ = 0;
  bool private_ = true;
  std::vector<Copy> copies_;
};

}  // namespace outpace
