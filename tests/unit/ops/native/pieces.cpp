// Threads take pieces: everything exactly once, round after round. Returns 0 if so.
#include <atomic>
#include <barrier>
#include <cstdio>
#include <thread>
#include <vector>

#include "pieces.h"

namespace {

// Whether `count` threads, of which the first is slow, take each of n things once in every round.
bool all_once(int count, int64_t n, int64_t most) {
  constexpr int kRounds = 5;
  outpace::Pieces pieces;
  pieces.reset(count);
  std::vector<std::atomic<int>> taken(static_cast<size_t>(n * kRounds));
  std::atomic<bool> fits{true};
  std::barrier meeting(count);
  std::vector<std::thread> threads;
  for (int t = 0; t < count; ++t) {
    threads.emplace_back([&, t] {
      for (int round = 1; round <= kRounds; ++round) {
        for (int64_t begin, end; pieces.take(static_cast<uint64_t>(round), t, count, n, most, begin, end);) {
          if (begin >= end || end - begin > most) fits = false;
          for (int64_t i = begin; i < end; ++i) ++taken[static_cast<size_t>((round - 1) * n + i)];
          if (t == 0) std::this_thread::yield();
        }
        meeting.arrive_and_wait();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& times : taken) fits = fits && times == 1;
  return fits;
}

}  // namespace

int main() {
  for (const int count : {1, 2, 3, 8}) {
    for (const int64_t n : {0, 1, 2, 7, 100, 3001}) {
      for (const int64_t most : {1, 5, 5000}) {
        if (all_once(count, n, most)) continue;
        std::printf("%d threads, %d things, pieces of %d\n", count, static_cast<int>(n), static_cast<int>(most));
        return 1;
      }
    }
  }
  return 0;
}
