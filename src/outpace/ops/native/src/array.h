// Rows of float32: hidden states [T, D] or logits [R, V], contiguous, 64-byte aligned.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <utility>
#include <vector>

namespace outpace {

struct Freed {
  void operator()(float* p) const { std::free(p); }
};

// Memory of an array: aligned to cache lines, its content undefined.
struct ArrayMemory {
  std::unique_ptr<float[], Freed> floats;
  size_t size = 0;
};

// Memory of arrays that died, to be used again: a pass makes and drops dozens of the same few sizes, and fresh memory
// from the system costs a page fault per 4 KB. Guarded by Python's GIL, under which arrays are made and dropped.
class Recycler {
 public:
  static Recycler& get() {
    static Recycler* recycler = new Recycler;  // never destroyed: arrays may outlive static objects
    return *recycler;
  }

  // Returns room for at least `size` floats, but not for many more.
  ArrayMemory take(size_t size) {
    auto best = kept_.end();
    for (auto it = kept_.begin(); it != kept_.end(); ++it) {
      if (it->size < size || it->size / 4 > size + 1024) continue;
      if (best == kept_.end() || it->size < best->size) best = it;
    }
    if (best == kept_.end()) return allocate(size);
    ArrayMemory memory = std::move(*best);
    kept_.erase(best);
    return memory;
  }

  void give(ArrayMemory memory) {
    if (kept_.size() == kMost) kept_.erase(kept_.begin());  // the one unused for longest
    kept_.push_back(std::move(memory));
  }

 private:
  static constexpr size_t kMost = 12;

  static ArrayMemory allocate(size_t size) {
    const size_t room = (size + 16) / 16 * 16;
    auto* floats = static_cast<float*>(std::aligned_alloc(64, room * sizeof(float)));
    if (floats == nullptr) throw std::bad_alloc();
    return {std::unique_ptr<float[], Freed>(floats), room};
  }

  std::vector<ArrayMemory> kept_;
};

class Array {
 public:
  Array(int64_t rows, int64_t cols)
      : rows_(rows), cols_(cols), memory_(Recycler::get().take(static_cast<size_t>(rows * cols))) {}
  ~Array() {
    if (memory_.floats != nullptr) Recycler::get().give(std::move(memory_));
  }
  Array(Array&&) = default;
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  Array& operator=(Array&&) = delete;

  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  int64_t size() const { return rows_ * cols_; }
  float* data() { return memory_.floats.get(); }
  const float* data() const { return memory_.floats.get(); }
  float* row(int64_t r) { return data() + r * cols_; }
  const float* row(int64_t r) const { return data() + r * cols_; }

 private:
  int64_t rows_, cols_;
  ArrayMemory memory_;
};

}  // namespace outpace
