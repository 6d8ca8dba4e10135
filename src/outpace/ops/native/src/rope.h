// Rotary tables: cosines and sines of position times frequency. Reference: ReferenceOps.rope.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "matmul/matmul.h"

namespace outpace {

// Rows are computed when a position is first used, and memory for them is taken in stretches: models announce contexts
// far longer than most sequences. Pages of stretches never move, so readers need no lock while another thread adds one.
class Rope {
 public:
  Rope(std::vector<double> inv_freq, double scale, int64_t context)
      : inv_freq_(std::move(inv_freq)), scale_(scale), context_(context) {}

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
      if (filled_ % kStretch == 0) add_stretch(filled_ / kStretch);
      for (int64_t i = 0; i < half(); ++i) {
        const double angle = static_cast<double>(filled_) * inv_freq_[i];
        const double scale = inv_freq_[i] == 0 ? 1.0 : scale_;  // a pair that does not turn is left alone
        row(filled_)[i] = static_cast<float>(std::cos(angle) * scale);
        row(filled_)[half() + i] = static_cast<float>(std::sin(angle) * scale);
      }
    }
  }

 private:
  static constexpr int64_t kStretch = 1024;       // positions
  static constexpr int64_t kPage = 2048;          // stretches
  static constexpr int64_t kPages = 1024;         // enough for 2^31 positions
  using Page = std::array<AlignedBuffer, kPage>;

  void add_stretch(int64_t stretch) {
    auto& page = pages_[stretch / kPage];
    if (page == nullptr) page = std::make_unique<Page>();
    const int64_t rows = std::min(kStretch, context_ - stretch * kStretch);
    (*page)[stretch % kPage] = AlignedBuffer(static_cast<size_t>(rows * half() * 2) * sizeof(float));
  }

  const float* row(int64_t position) const {
    const int64_t stretch = position / kStretch;
    const AlignedBuffer& rows = (*pages_[stretch / kPage])[stretch % kPage];
    return reinterpret_cast<const float*>(rows.data()) + position % kStretch * half() * 2;
  }
  float* row(int64_t position) { return const_cast<float*>(std::as_const(*this).row(position)); }

  std::vector<double> inv_freq_;
  double scale_;
  int64_t context_;
  std::array<std::unique_ptr<Page>, kPages> pages_;
  int64_t filled_ = 0;
  std::mutex mutex_;
};

}  // namespace outpace
