// Packing that goes on while the caller does something else (reads a vocabulary, say), and is waited for before anybody
// computes.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>

#include "matmul/matmul.h"

namespace outpace {

// The matrices of this process that are still to be packed. Threads of its own take them a piece at a time, and whoever
// waits for the end takes pieces too: with one thread, all is packed then.
class Packing {
 public:
  static Packing& get();

  // Begins to pack a whole matrix, as pack_tiles does, on at most `threads` threads, the one that will wait among them.
  // `raw` must stay as it is until finish() has returned. mapped: it lies in a file that is mapped read-only, whose
  // pages are let go as they are packed.
  void begin(std::shared_ptr<Matrix> matrix, const uint8_t* raw, bool mapped, int threads);

  bool is_finished() const { return pieces_left_.load(std::memory_order_acquire) == 0; }

  // Returns when all that was begun is packed, and helps until then.
  void finish();

 private:
  struct Job {
    std::shared_ptr<Matrix> matrix;
    const uint8_t* raw = nullptr;
    bool mapped = false;
    int64_t begin = 0, end = 0;  // tiles
  };

  static void release(const Job& piece);
  bool take(Job& piece);
  void pack_pieces();
  void work();

  std::mutex mutex_;
  std::condition_variable added_, finished_;
  std::deque<Job> jobs_;  // each without the pieces that were taken
  int workers_ = 0;
  std::atomic<int64_t> pieces_left_{0};  // that are not packed yet, be they taken or not
};

}  // namespace outpace
