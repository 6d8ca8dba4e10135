// Fills a table of kernels for one instruction set S: every format, 1 to S::kRowBlock rows.
#pragma once

#include <utility>

#include "float_kernel.h"
#include "int8_kernel.h"
#include "int8_pair.h"
#include "kernels.h"
#include "prepare_kernel.h"

namespace outpace {
namespace {

template <class S, Format F, int R>
constexpr TileKernel tile_kernel() {
  if constexpr (layout::is_float(F)) {
    return float_tile<S, F, R>;
  } else {
    return int8_tile<S, F, R>;
  }
}

template <class S, Format F, int... R>
constexpr void fill_format(Kernels& table, std::integer_sequence<int, R...>) {
  ((table.tile[static_cast<int>(F)][R + 1] = tile_kernel<S, F, R + 1>()), ...);
}

template <class S, Format F>
constexpr PairKernel pair_kernel() {
  if constexpr (has_pair_kernel<S, F>()) {
    return int8_pair<S, F>;
  } else {
    return nullptr;
  }
}

template <class S, int... F>
constexpr void fill_formats(Kernels& table, std::integer_sequence<int, F...>) {
  (fill_format<S, static_cast<Format>(F)>(table, std::make_integer_sequence<int, S::kRowBlock>()), ...);
  ((table.pair[F] = pair_kernel<S, static_cast<Format>(F)>()), ...);
}

template <class S>
constexpr Kernels make_kernels() {
  Kernels table{};
  table.row_block = S::kRowBlock;
  fill_formats<S>(table, std::make_integer_sequence<int, kNumFormats>());
  table.prepare[static_cast<int>(ActKind::F32)] = prepare_float<S>;
  table.prepare[static_cast<int>(ActKind::BF16)] = prepare_bf16<S>;
  table.prepare[static_cast<int>(ActKind::Int8)] = prepare_int8<S>;
  return table;
}

}  // namespace
}  // namespace outpace
