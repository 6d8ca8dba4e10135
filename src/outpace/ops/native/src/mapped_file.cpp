#include "mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <stdexcept>

namespace outpace {

void release_pages(const uint8_t* begin, const uint8_t* end) {
  static const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t first = (reinterpret_cast<uintptr_t>(begin) + page - 1) / page * page;
  const uintptr_t last = reinterpret_cast<uintptr_t>(end) / page * page;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

MappedFile::MappedFile(const std::string& path) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat found {};
  const bool is_there = file >= 0 && fstat(file, &found) == 0 && S_ISREG(found.st_mode) && found.st_size > 0;
  size_ = is_there ? static_cast<size_t>(found.st_size) : 0;
  void* p = is_there ? mmap(nullptr, size_, PROT_READ, MAP_SHARED, file, 0) : MAP_FAILED;
  if (file >= 0) close(file);
  if (p == MAP_FAILED) throw std::invalid_argument(path + ": cannot be mapped");
#if defined(MADV_HUGEPAGE)
  madvise(p, size_, MADV_HUGEPAGE);
#endif
  mapping_ = {p, [bytes = size_](void* start) { munmap(start, bytes); }};
}

}  // namespace outpace
