#include "pool.h"

#include <pthread.h>
#if defined(__linux__)
#include <sched.h>
#endif

#include <algorithm>
#include <chrono>
#include <system_error>
#include <thread>

#include "float_mode.h"
#include "signals.h"

namespace outpace {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kBarrierSpin = std::chrono::microseconds(50);
constexpr auto kIdleSpin = std::chrono::microseconds(150);  // spans the gap between two calls of a step
// A worker that spins comes within one microsecond, a parked one in about 20. Who did not come to the last job is
// probably still away.
constexpr auto kPatience = std::chrono::microseconds(20), kLittlePatience = std::chrono::microseconds(4);

// A worker that came too late for one job stays awake for the next, or it would come too late for every long job.
constexpr auto kLateSpin = std::chrono::milliseconds(50);

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb");
#endif
}

// Waits until `word` is not `seen`: spins for about `spin`, then parks in the kernel.
void wait_change(const std::atomic<uint32_t>& word, uint32_t seen, Clock::duration spin) {
  const auto changed = [&] { return word.load(std::memory_order_acquire) != seen; };
  for (int i = 0; i < 256; ++i) {
    if (changed()) return;
    pause();
  }
  for (const auto end = Clock::now() + spin; Clock::now() < end;) {
    for (int i = 0; i < 32; ++i) {
      if (changed()) return;
      pause();
    }
  }
  word.wait(seen, std::memory_order_acquire);
}

// The same, for a long time and leaving the core to whoever else wants it.
void wait_change_yielding(const std::atomic<uint32_t>& word, uint32_t seen, Clock::duration spin) {
  for (const auto end = Clock::now() + spin; Clock::now() < end;) {
    if (word.load(std::memory_order_acquire) != seen) return;
    std::this_thread::yield();
  }
  word.wait(seen, std::memory_order_acquire);
}

// Changes a word that others wait for. The store is sequentially consistent: notify_all first looks whether anybody is
// parked, and that look may overtake a weaker store (on x86-64); a thread that parks just then would sleep for ever.
void change(std::atomic<uint32_t>& word, uint32_t value) {
  word.store(value, std::memory_order_seq_cst);
  word.notify_all();
}

// The core that this thread is on, or -1 where nobody tells.
int this_core() {
#if defined(__linux__)
  return sched_getcpu();
#else
  return -1;
#endif
}

// Moves this thread off a core if another is allowed; where it may run stays as it was. A worker that was woken on its
// caller's core can wait there for a whole job while the other core idles.
void leave_core(int core) {
#if defined(__linux__)
  cpu_set_t allowed;
  if (core < 0 || this_core() != core || sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
  cpu_set_t others = allowed;
  CPU_CLR(core, &others);
  if (CPU_COUNT(&others) == 0) return;
  sched_setaffinity(0, sizeof others, &others);
  sched_setaffinity(0, sizeof allowed, &allowed);
#else
  (void)core;
#endif
}

std::atomic<Pool*> pool_of_process{nullptr};

// In the child of a fork: its parent's pool is a husk without threads, its mutex perhaps locked for ever.
void forget_pool() { pool_of_process.store(nullptr); }

}  // namespace

void Barrier::arrive_and_wait(int count) {
  const uint32_t generation = generation_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 < static_cast<uint32_t>(count)) {
    wait_change(generation_, generation, kBarrierSpin);
    return;
  }
  arrived_.store(0, std::memory_order_relaxed);
  change(generation_, generation + 1);
}

Pool& Pool::get() {
  if (Pool* pool = pool_of_process.load()) return *pool;
  static std::once_flag once;
  std::call_once(once, [] { pthread_atfork(nullptr, nullptr, forget_pool); });
  Pool* fresh = new Pool;
  Pool* other = nullptr;
  if (pool_of_process.compare_exchange_strong(other, fresh)) return *fresh;
  delete fresh;
  return *other;
}

// The door of a job: its number, whether it is closed, how many workers it wants, how many came.
namespace door {

constexpr uint64_t kClosed = uint64_t{1} << 31;
uint64_t open(uint32_t number, int wanted) { return uint64_t{number} << 32 | static_cast<uint64_t>(wanted) << 16; }
uint32_t number(uint64_t door) { return static_cast<uint32_t>(door >> 32); }
int wanted(uint64_t door) { return static_cast<int>(door >> 16 & 0x7FFF); }
int came(uint64_t door) { return static_cast<int>(door & 0xFFFF); }

}  // namespace door

void Pool::run_job(const Job& job) {
  if (job.count <= 1) {  // alone: no turn to wait for
    const FloatMode mode;
    Member alone{0, 1, nullptr};
    job.call(job.body, alone);
    return;
  }
  const std::scoped_lock lock(turn_);
  // In a forked child they start here, and may be fewer than wanted; without any, nobody is called.
  const int workers = std::min(job.count - 1, start_workers(job.count - 1));
  job_ = job;
  pieces_.reset(job.count);
  team_ = 1 + (workers > 0 ? gather(workers) : 0);
  change(started_, called_.load(std::memory_order_relaxed));
  run_member(0);
  // Now nobody reads job_: those who did not come in time never do.
  end_.arrive_and_wait(team_);
}

// Calls the workers and returns how many of them came, at most `wanted`, when the door closed behind them.
int Pool::gather(int wanted) {
  const uint32_t number = called_.load(std::memory_order_relaxed) + 1;
  caller_core_.store(this_core(), std::memory_order_relaxed);
  door_.store(door::open(number, wanted), std::memory_order_relaxed);
  change(called_, number);
  const auto all_came = [&] { return door::came(door_.load(std::memory_order_acquire)) == wanted; };
  const auto patience = complete_ ? kPatience : kLittlePatience;
  for (const auto end = Clock::now() + patience; !all_came() && Clock::now() < end;) pause();
  const int came = door::came(door_.fetch_or(door::kClosed, std::memory_order_acq_rel));
  complete_ = came == wanted;
  return came;
}

void Pool::run_member(int index) {
  const FloatMode mode;
  Member member{index, team_, &inside_, &pieces_};
  job_.call(job_.body, member);
}

void Pool::work(uint32_t seen) {
  for (int index = 1;;) {
    if (index == 0) {
      leave_core(caller_core_.load(std::memory_order_relaxed));
      wait_change_yielding(called_, seen, kLateSpin);
    } else {
      wait_change(called_, seen, kIdleSpin);
    }
    seen = called_.load(std::memory_order_acquire);
    index = join(seen);
    if (index == 0) continue;
    wait_change(started_, seen - 1, kBarrierSpin);
    run_member(index);
    end_.arrive_and_wait(team_);
  }
}

// Returns the worker's place in the team of a job, or 0 if that is complete.
int Pool::join(uint32_t number) {
  uint64_t seen = door_.load(std::memory_order_acquire);
  while (door::number(seen) == number && (seen & door::kClosed) == 0 && door::came(seen) < door::wanted(seen)) {
    if (door_.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel)) return door::came(seen) + 1;
  }
  return 0;
}

int Pool::start(int count) {
  const std::scoped_lock lock(turn_);
  return start_workers(count);
}

int Pool::start_workers(int count) {
  if (workers_ >= count) return workers_;
  const SignalsBlocked blocked;
  try {
    for (; workers_ < count; ++workers_) {
      std::thread([this, seen = called_.load()] { work(seen); }).detach();
    }
  } catch (const std::system_error&) {  // the system's limit of threads, or its memory
  }
  return workers_;
}

}  // namespace outpace
