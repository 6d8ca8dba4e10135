// A phase's work in pieces that threads take until none is left.
#pragma once

#include <algorithm>
#include <atomic>
#include <cassert>
#include <cstdint>
#include <memory>

namespace outpace {

// Each thread takes pieces from the front of its own even share, then from the back of others'. So a thread whose core
// is slow, or busy with something else, is left with little; and one that has its core streams through its share.
// Who computes a piece changes no bit of it.
class Pieces {
 public:
  // Before the threads of a job start.
  void reset(int count) {
    if (room_ < count) {
      shares_ = std::make_unique<Share[]>(static_cast<size_t>(count));
      room_ = count;
    }
    for (int t = 0; t < count; ++t) shares_[t].word.store(0, std::memory_order_relaxed);
  }

  // Takes a piece [begin, end) of [0, n), at most `maximum` long, for thread `taker` of `count`; false: none is left.
  // `round` numbers the phases of a job from 1; between two of them all threads meet at a barrier.
  bool take(uint64_t round, int taker, int count, int64_t n, int64_t maximum, int64_t& begin, int64_t& end) {
    assert(n < int64_t{1} << kBits && round < uint64_t{1} << 8);
    for (int i = 0; i < count; ++i) {
      const int owner = (taker + i) % count;
      std::atomic<uint64_t>& word = shares_[owner].word;
      for (uint64_t seen = word.load(std::memory_order_relaxed);;) {
        const bool fresh = seen >> 2 * kBits != round;  // nobody has taken of this share in this round
        int64_t first = fresh ? n * owner / count : static_cast<int64_t>(seen >> kBits & kMask);
        int64_t last = fresh ? n * (owner + 1) / count : static_cast<int64_t>(seen & kMask);
        if (first == last) break;
        const int64_t size = std::min(maximum, last - first);
        begin = i == 0 ? first : last - size;
        end = begin + size;
        (i == 0 ? first : last) = i == 0 ? end : begin;
        const uint64_t left = round << 2 * kBits | static_cast<uint64_t>(first) << kBits | static_cast<uint64_t>(last);
        if (word.compare_exchange_weak(seen, left, std::memory_order_relaxed)) return true;
      }
    }
    return false;
  }

 private:
  static constexpr int kBits = 28;  // more than the tiles of all matrices of a phase: each has at most 2^26
  static constexpr uint64_t kMask = (uint64_t{1} << kBits) - 1;

  // What is left of a thread's share: round, first and last, in one word. On a cache line of its own.
  struct Share {
    alignas(64) std::atomic<uint64_t> word{0};
  };

  std::unique_ptr<Share[]> shares_;
  int room_ = 0;
};

}  // namespace outpace
