// From float32 to blocks of the quantised formats, as files store them.
//
// Q8_0, Q4_0, Q4_1, Q5_0 and Q5_1 have the bits of the `gguf` package (quants.py). For the others a search finds scales
// that make the squared error small; which error is said at each.
#pragma once

#include "matmul.h"

namespace outpace {

// Whether `round_row` writes the format.
bool can_round(Format format);

// Rounds `in` numbers, a multiple of block_width(format), to a row of the format. Numbers that are not finite give some
// block or other, never undefined behaviour.
void round_row(Format format, const float* x, int64_t in, uint8_t* row);

}  // namespace outpace
