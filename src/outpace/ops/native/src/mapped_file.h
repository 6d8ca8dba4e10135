// Pages of a mapped file that are done with.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace outpace {

// Takes the whole pages in [begin, end) out of the process: bytes of a file that is mapped read-only. They are there
// again, from the file, when somebody reads them. Memory that is no file's would be lost.
void release_pages(const uint8_t* begin, const uint8_t* end);

// A whole file, mapped read-only, in huge pages where the system has them. It must not be cut short while it is in use.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path);  // throws std::invalid_argument where it cannot be mapped

  const std::shared_ptr<void>& mapping() const { return mapping_; }
  uint8_t* data() const { return static_cast<uint8_t*>(mapping_.get()); }
  size_t size() const { return size_; }

 private:
  std::shared_ptr<void> mapping_;
  size_t size_ = 0;
};

}  // namespace outpace
