// Rotary tables: cosines and sines of position times frequency. Reference: ReferenceOps.rope.
#pragma once

#include <cmath>
#include <cstdint>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "matmul/matmul.h"

namespace outpace {

// Rows are computed when a position is first used: models allow contexts far longer than most sequences.
class Rope {
 public:
  Rope(std::vector<double> inv_freq, double scale, int64_t context)
      : inv_freq_(std::move(inv_freq)),
        scale_(scale),
        context_(context),
        table_(static_cast<size_t>(context) * inv_freq_.size() * 2 * sizeof(float)) {}

  int64_t half() const { return static_cast<int64_t>(inv_freq_.size()); }
  int64_t context() const { return context_; }
  const float* cos(int64_t position) const { return row(position); }
  const float* sin(int64_t position) const { return row(position) + half(); }

  // Makes the rows of positions [0, last]. Throws std::invalid_argument if that is past the context.
  void ensure(int64_t last) {
    if (last >= context_) {
      throw std::invalid_argument("position " + std::to_string(last) +
                                  " is outside the rotary table: allowed are [0, " + std::to_string(context_) + ")");
    }
    const std::scoped_lock lock(mutex_);
    for (; filled_ <= last; ++filled_) {
      for (int64_t i = 0; i < half(); ++i) {
        const double angle = static_cast<double>(filled_) * inv_freq_[i];
        row(filled_)[i] = static_cast<float>(std::cos(angle) * scale_);
        row(filled_)[half() + i] = static_cast<float>(std::sin(angle) * scale_);
      }
    }
  }

 private:
  float* row(int64_t position) { return reinterpret_cast<float*>(table_.data()) + position * half() * 2; }
  const float* row(int64_t position) const {
    return reinterpret_cast<const float*>(table_.data()) + position * half() * 2;
  }

  std::vector<double> inv_freq_;
  double scale_;
  int64_t context_;
  AlignedBuffer table_;
  int64_t filled_ = 0;
  std::mutex mutex_;
};

}  // namespace outpace
