// Strings of a file's header as Python objects.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>

namespace outpace {

// Returns (list of strings, where they end) of `count` strings that follow each other in bytes [start, end), each a
// length of 64 bits, little-endian, and as many bytes of UTF-8; None where one does not fit or is none. Specification:
// `_strings` of src/outpace/weights/gguf.py.
nanobind::object read_strings(const uint8_t* bytes, int64_t start, int64_t end, int64_t count);

}  // namespace outpace
