#include "row_kernels.h"

#include "../matmul/isa.h"

namespace outpace {

namespace baseline {
extern const RowKernels table;
}
#if defined(__x86_64__)
namespace avx2 {
extern const RowKernels table;
}
namespace avx512 {
extern const RowKernels table;
}
namespace avx512_bf16 {
extern const RowKernels table;
}
#endif

const RowKernels& row_kernels() {
#if defined(__x86_64__)
  switch (active_isa()) {
    case Isa::Avx2: return avx2::table;
    case Isa::Avx512: return has_bf16_dot() ? avx512_bf16::table : avx512::table;
    default: break;
  }
#endif
  return baseline::table;
}

}  // namespace outpace
