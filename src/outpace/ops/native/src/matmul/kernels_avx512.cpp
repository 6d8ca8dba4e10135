#include "kernel_table.h"
#include "simd_avx512.h"

namespace outpace {

const Kernels& kernels_avx512() {
  static constexpr Kernels table = make_kernels<Avx512>();
  return table;
}

}  // namespace outpace
