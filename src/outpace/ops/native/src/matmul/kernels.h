// What one instruction set offers: a table of kernels, made by the translation unit that is compiled for it.
#pragma once

#include "matmul.h"

namespace outpace {

constexpr int kNumFormats = 16;
constexpr int kMaxRowBlock = 16;

// One tile times one block of rows. `depth` is the matrix's `in`; rows: the block (layout.h); y: the tile's first
// column of the block's first row; cols: how many of the tile's columns exist.
using TileKernel = void (*)(const uint8_t* tile, int64_t depth, const uint8_t* rows, float* y, int64_t ldy,
                            int64_t cols);

// The same for two whole tiles, `tile_bytes` apart, and a block of n rows, which pays_in_pairs(n): the same bits.
using PairKernel = void (*)(const uint8_t* tile, int64_t tile_bytes, int64_t depth, const uint8_t* rows, int64_t n,
                            float* y, int64_t ldy);
constexpr bool pays_in_pairs(int64_t n) { return n >= 8 && n % 4 == 0; }

// Converts one row x [in] into row `r` of a block of `n` rows.
using PrepareKernel = void (*)(const float* x, int64_t in, uint8_t* block, int64_t r, int64_t n);

struct Kernels {
  int row_block;                                   // rows in a block: as many as the registers hold accumulators for
  bool bf16_dot;                                   // BF16 matrices take BF16 activations
  TileKernel tile[kNumFormats][kMaxRowBlock + 1];  // by format and number of rows in the block
  PairKernel pair[kNumFormats];                    // null: there is none
  PrepareKernel prepare[3];                        // by ActKind
};

const Kernels& kernels_baseline();
#if defined(__x86_64__)
const Kernels& kernels_avx2();
const Kernels& kernels_avx512();
const Kernels& kernels_avx512_bf16();
#endif

// The table that this process uses.
const Kernels& kernels();

}  // namespace outpace
