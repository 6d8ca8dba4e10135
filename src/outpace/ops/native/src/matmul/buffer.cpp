#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <utility>

#include "matmul.h"

namespace outpace {
namespace {

constexpr size_t kLine = 64, kHugePage = size_t{2} << 20;
constexpr size_t kSharedMapping = size_t{64} << 20;  // only what is written takes memory

// AddressSanitizer watches the ends of what lies on the heap, but not those of mappings.
#if defined(__SANITIZE_ADDRESS__)
constexpr bool kOnHeap = true;
#else
constexpr bool kOnHeap = false;
#endif

size_t round_up(size_t bytes, size_t unit) {
  if (bytes > SIZE_MAX - unit) throw std::bad_alloc();
  return (bytes + unit - 1) / unit * unit;
}

// Maps memory of zeros that is unmapped with the last pointer to it.
std::shared_ptr<void> map(size_t bytes) {
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  return {p, [bytes](void* start) { munmap(start, bytes); }};
}

struct Piece {
  std::shared_ptr<void> mapping;
  uint8_t* start = nullptr;
};

Piece take_from_heap(size_t bytes) {
  void* start = nullptr;
  if (posix_memalign(&start, kLine, bytes) != 0) throw std::bad_alloc();
  std::memset(start, 0, bytes);
  return {{start, std::free}, static_cast<uint8_t*>(start)};
}

Piece map_pages(size_t bytes) {
  auto mapping = map(bytes);
  auto* start = static_cast<uint8_t*>(mapping.get());
  return {std::move(mapping), start};
}

// Maps memory that starts at a multiple of a huge page and is advised to use them.
Piece map_huge_pages(size_t bytes) {
  auto mapping = map(round_up(bytes, kHugePage) + kHugePage);
  const auto address = reinterpret_cast<uintptr_t>(mapping.get());
  uint8_t* start = static_cast<uint8_t*>(mapping.get()) + (kHugePage - address % kHugePage) % kHugePage;
#if defined(MADV_HUGEPAGE)
  madvise(start, bytes, MADV_HUGEPAGE);
#endif
  return {std::move(mapping), start};
}

// A mapping that is handed out piece by piece, never the same piece twice.
class SharedMapping {
 public:
  Piece take(size_t bytes) {
    const std::lock_guard lock(mutex_);
    auto mapping = mapping_.lock();
    if (mapping == nullptr || left_ < bytes) {
      left_ = std::max(bytes, kSharedMapping);
      const Piece whole = map_huge_pages(left_);
      mapping = whole.mapping;
      mapping_ = mapping;
      next_ = whole.start;
    }
    uint8_t* piece = next_;
    next_ += bytes;
    left_ -= bytes;
    return {std::move(mapping), piece};
  }

 private:
  std::mutex mutex_;
  std::weak_ptr<void> mapping_;
  uint8_t* next_ = nullptr;
  size_t left_ = 0;
};

}  // namespace

AlignedBuffer::AlignedBuffer(size_t bytes) : size_(bytes) {
  if (bytes == 0) return;
  Piece piece = kOnHeap ? take_from_heap(bytes) : bytes < kHugePage ? map_pages(bytes) : map_huge_pages(bytes);
  mapping_ = std::move(piece.mapping);
  data_ = piece.start;
}

AlignedBuffer AlignedBuffer::view(std::shared_ptr<void> mapping, uint8_t* data, size_t bytes) {
  AlignedBuffer buffer;
  buffer.mapping_ = std::move(mapping);
  buffer.data_ = data;
  buffer.size_ = bytes;
  return buffer;
}

AlignedBuffer AlignedBuffer::in_huge_pages(size_t bytes) {
  static SharedMapping shared;
  AlignedBuffer buffer;
  if (bytes == 0) return buffer;
  Piece piece = kOnHeap ? take_from_heap(bytes) : shared.take(round_up(bytes, kLine));
  buffer.mapping_ = std::move(piece.mapping);
  buffer.data_ = piece.start;
  buffer.size_ = bytes;
  return buffer;
}

}  // namespace outpace
