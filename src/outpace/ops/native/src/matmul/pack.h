// Packing faster than code by code, for the formats that most files are in.
#pragma once

#include <cstdint>

#include "matmul.h"

namespace outpace {

// Packs a tile of a matrix from `columns` (1 to 16) rows in its own format, the first at `rows`, four codes at a time;
// bitwise what packing group by group gives (pack.cpp). Returns false for what it does not know (Q2_K, Q3_K, IQ4_XS and
// MXFP4, unless whole tiles are packed in vectors); nothing is written then.
bool pack_by_dwords(const Matrix& matrix, const uint8_t* rows, int64_t columns, uint8_t* tile);

// The same for all quantised formats, from 16 rows, with the vectors of one instruction set.
using TilePacker = void (*)(const Matrix& matrix, const uint8_t* rows, uint8_t* tile);
#if defined(__x86_64__)
void pack_tile_avx2(const Matrix& matrix, const uint8_t* rows, uint8_t* tile);
void pack_tile_avx512(const Matrix& matrix, const uint8_t* rows, uint8_t* tile);
#endif

}  // namespace outpace
