// Pages of a mapped file that are done with.
#pragma once

#include <cstdint>

namespace outpace {

// Takes the whole pages in [begin, end) out of the process: bytes of a file that is mapped read-only. They are there
// again, from the file, when somebody reads them. Memory that is no file's would be lost.
void release_pages(const uint8_t* begin, const uint8_t* end);

}  // namespace outpace
