#include "kernel_table.h"
#include "simd_avx2.h"

namespace outpace {

const Kernels& kernels_avx2() {
  static constexpr Kernels table = make_kernels<Avx2>();
  return table;
}

}  // namespace outpace
