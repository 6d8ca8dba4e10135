#include "packing.h"

#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <system_error>
#include <thread>

#include "float_mode.h"
#include "mapped_file.h"
#include "signals.h"

namespace outpace {
namespace {

constexpr int64_t kPieceBytes = int64_t{1} << 20;       // of the file, about
constexpr auto kLinger = std::chrono::milliseconds(50);  // of a worker without work: the next matrix comes soon

std::atomic<Packing*> packing_of_process{nullptr};

// A child of a fork has none of its parent's threads: all is packed before, and the child begins anew.
void finish_before_fork() { Packing::get().finish(); }
void forget_packing() { packing_of_process.store(nullptr); }

int64_t tiles_of_piece(const Matrix& matrix) {
  return std::max<int64_t>(1, kPieceBytes / (kTileWidth * row_bytes(matrix.format, matrix.in)));
}

}  // namespace

Packing& Packing::get() {
  if (Packing* packing = packing_of_process.load()) return *packing;
  static std::once_flag once;
  std::call_once(once, [] { pthread_atfork(finish_before_fork, nullptr, forget_packing); });
  Packing* fresh = new Packing;  // never deleted: its workers are detached
  Packing* other = nullptr;
  if (packing_of_process.compare_exchange_strong(other, fresh)) return *fresh;
  delete fresh;
  return *other;
}

void Packing::begin(std::shared_ptr<Matrix> matrix, const uint8_t* raw, bool mapped, int threads) {
  const int64_t tiles = matrix->num_tiles(), step = tiles_of_piece(*matrix);
  const std::scoped_lock lock(mutex_);
  pieces_left_.fetch_add((tiles + step - 1) / step);
  jobs_.push_back({std::move(matrix), raw, mapped, 0, tiles});
  const SignalsBlocked blocked;
  try {
    for (; workers_ < threads - 1; ++workers_) std::thread([this] { work(); }).detach();
  } catch (const std::system_error&) {  // the system's limit of threads: who waits packs
  }
  added_.notify_all();
}

bool Packing::take(Job& piece) {
  const std::scoped_lock lock(mutex_);
  if (jobs_.empty()) return false;
  Job& job = jobs_.front();
  piece = job;
  piece.end = std::min(job.end, job.begin + tiles_of_piece(*job.matrix));
  job.begin = piece.end;
  if (job.begin == job.end) jobs_.pop_front();
  return true;
}

void Packing::pack_pieces() {
  const FloatMode mode;
  for (Job piece; take(piece);) {
    pack_tiles(*piece.matrix, piece.raw, piece.begin, piece.end);
    if (piece.mapped) release(piece);
    if (pieces_left_.fetch_sub(1, std::memory_order_acq_rel) > 1) continue;
    const std::scoped_lock lock(mutex_);  // or the last news could fall between a look and a wait
    finished_.notify_all();
  }
}

void Packing::release(const Job& piece) {
  const int64_t row = row_bytes(piece.matrix->format, piece.matrix->in);
  release_pages(piece.raw + piece.begin * kTileWidth * row,
                piece.raw + std::min(piece.end * kTileWidth, piece.matrix->out) * row);
}

void Packing::finish() {
  if (is_finished()) return;
  pack_pieces();
  std::unique_lock lock(mutex_);
  finished_.wait(lock, [this] { return is_finished(); });
}

void Packing::work() {
  for (;;) {
    pack_pieces();
    std::unique_lock lock(mutex_);
    if (added_.wait_for(lock, kLinger, [this] { return !jobs_.empty(); })) continue;
    --workers_;
    return;
  }
}

}  // namespace outpace
