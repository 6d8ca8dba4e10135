// Packing by dwords: four codes at a time instead of one, for the formats that most files are in.
#pragma once

#include <cstdint>

#include "matmul.h"

namespace outpace {

// Packs a tile of a matrix from `columns` (1 to 16) rows in its own format, the first at `rows`; bitwise what packing
// group by group gives (pack.cpp). Returns false for the formats that it does not know; nothing is written then.
bool pack_by_dwords(const Matrix& matrix, const uint8_t* rows, int64_t columns, uint8_t* tile);

}  // namespace outpace
