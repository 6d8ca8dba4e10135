#include "kernel_table.h"
#include "simd_baseline.h"

namespace outpace {

const Kernels& kernels_baseline() {
  static constexpr Kernels table = make_kernels<Baseline>();
  return table;
}

}  // namespace outpace
