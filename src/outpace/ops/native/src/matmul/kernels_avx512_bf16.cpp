#include <utility>

#include "bf16_kernel.h"
#include "kernels.h"
#include "simd_avx512.h"

namespace outpace {
namespace {

template <int... R>
void fill_bf16(Kernels& table, std::integer_sequence<int, R...>) {
  ((table.tile[static_cast<int>(Format::BF16)][R + 1] = bf16_tile<Avx512, R + 1>), ...);
}

Kernels make_table() {
  Kernels table = kernels_avx512();
  table.bf16_dot = true;
  fill_bf16(table, std::make_integer_sequence<int, Avx512::kRowBlock>());
  return table;
}

}  // namespace

const Kernels& kernels_avx512_bf16() {
  static const Kernels table = make_table();
  return table;
}

}  // namespace outpace
