// One pool of threads for the whole process: jobs of several models take turns on it.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <type_traits>

#include "pieces.h"

namespace outpace {

// Where a number of threads wait for each other: spins briefly, then parks.
class Barrier {
 public:
  void arrive_and_wait(int count);

 private:
  // Each on a cache line of its own: one is written by all, the other is read in a loop.
  alignas(64) std::atomic<uint32_t> arrived_{0};
  alignas(64) std::atomic<uint32_t> generation_{0};
};

// One thread's place in a running job.
struct Member {
  int index;  // in [0, count)
  int count;  // threads that run the job
  Barrier* meeting;
  Pieces* pieces = nullptr;
  uint64_t round = 0;  // calls of `take_pieces` so far

  // Waits until all threads of the job are here.
  void barrier() const {
    if (count > 1) meeting->arrive_and_wait(count);
  }

  // This thread's even share [begin, end) of n items.
  struct Share {
    int64_t begin, end;
  };
  Share share(int64_t n) const { return {n * index / count, n * (index + 1) / count}; }

  // Calls body(begin, end) for pieces of [0, n), at most `maximum` long, that the threads take as they come to it. All
  // threads of the job call this alike, with a barrier between one call and the next.
  template <class Body>
  void take_pieces(int64_t n, int64_t maximum, Body body) {
    ++round;
    if (count == 1) {
      if (n > 0) body(int64_t{0}, n);
      return;
    }
    for (int64_t begin, end; pieces->take(round, index, count, n, maximum, begin, end);) body(begin, end);
  }
};

// Threads that spin briefly for work and then park. Never destroyed: workers end with the process.
// A forked child has none of its parent's threads, so it gets a pool of its own.
//
// Nobody waits for a thread that is not there. A job takes the workers that come within a moment; on a busy machine,
// where the system has given their cores to others, it starts without them. (Threads that wait for each other at every
// barrier only get on while all of them run, which on such a machine is next to never.) So a body must compute the same
// whatever Member::count turns out to be: bits never depend on it.
class Pool {
 public:
  static Pool& get();

  // Starts workers until there are `count` of them, and returns how many there are: fewer where the system refuses.
  int start(int count);

  // Runs body(Member&) on at most `count` threads, the caller among them, in the standard floating-point mode;
  // returns when all have returned. One job at a time: others wait for their turn. `body` must not throw.
  template <class Body>
  void run(int count, Body&& body) {
    using Plain = std::remove_reference_t<Body>;
    run_job({[](void* b, Member& m) { (*static_cast<Plain*>(b))(m); }, &body, count});
  }

 private:
  struct Job {
    void (*call)(void*, Member&) = nullptr;
    void* body = nullptr;
    int count = 0;
  };

  void run_job(const Job& job);
  int gather(int wanted);
  void run_member(int index);
  [[noreturn]] void work(uint32_t seen);
  int join(uint32_t number);
  int start_workers(int count);

  std::mutex turn_;  // held while a job runs
  Job job_;
  int team_ = 0;  // threads that run it
  int workers_ = 0;
  bool complete_ = true;  // whether all workers came to the last job
  Barrier inside_, end_;
  Pieces pieces_;
  // Each on a cache line of its own: they are read in loops.
  alignas(64) std::atomic<uint32_t> called_{0};   // number of the last job that workers were called for
  alignas(64) std::atomic<uint64_t> door_{0};     // who came for it: see pool.cpp
  std::atomic<int> caller_core_{-1};              // where the caller of that job runs
  alignas(64) std::atomic<uint32_t> started_{0};  // number of the last job whose team is complete
};

}  // namespace outpace
