// Blocks of the quantised formats as files store them.
//
// Reference: src/outpace/ops/formats.py (`dequantise`).
#pragma once

#include "matmul.h"

namespace outpace {

// One group of 32 numbers: number = scale * (code - offset) + minimum, where scale is d or, in blocks of 256, d * s (of
// each half of the group), and minimum is m or -(d_minimum * minimum). For formats with a table, its entry of that code.
struct Group {
  uint8_t codes[32];
  uint16_t d, m;                   // halves: d and m, or d and dmin
  uint8_t scale[2], minimum[2];  // of each half in a block of 256: int8 in Q6_K, Q3_K and IQ4_XS; MXFP4's exponent
};

// Reads group g of a row as a file stores it.
void read_group(Format format, const uint8_t* row, int64_t g, Group& group);

// Writes the numbers of a group, with the float32 operations of the reference in its order.
void dequantise_group(Format format, const Group& group, float* y);

// Writes n numbers of a row of F32, F16 or BF16, starting at number k.
void read_floats(Format format, const uint8_t* row, int64_t k, int64_t n, float* y);

}  // namespace outpace
