#include "isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace outpace {
namespace {

constexpr Isa kAll[] = {Isa::Baseline, Isa::Avx2, Isa::Avx512};

// __builtin_cpu_supports also asks whether the operating system saves the registers.
Isa find_best() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("f16c")) {
    return Isa::Baseline;
  }
  const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                    __builtin_cpu_supports("avx512vnni");
  return wide ? Isa::Avx512 : Isa::Avx2;
#else
  return Isa::Baseline;
#endif
}

Isa find_active() {
  const char* name = std::getenv("OUTPACE_ISA");
  if (name == nullptr || *name == '\0') return best_isa();
  for (const Isa isa : kAll) {
    if (std::string(name) != isa_name(isa)) continue;
    if (isa > best_isa()) {
      throw std::invalid_argument(std::string("OUTPACE_ISA is ") + name + ", which this CPU lacks: its best is " +
                                  isa_name(best_isa()));
    }
    return isa;
  }
  throw std::invalid_argument(std::string("OUTPACE_ISA is '") + name + "': allowed are baseline, avx2, avx512");
}

}  // namespace

Isa best_isa() {
  static const Isa best = find_best();
  return best;
}

Isa active_isa() {
  static const Isa isa = find_active();
  return isa;
}

bool has_bf16_dot() { return kernels().bf16_dot; }

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::Baseline: return "baseline";
    case Isa::Avx2: return "avx2";
    case Isa::Avx512: return "avx512";
  }
  return "";
}

const Kernels& kernels() {
#if defined(__x86_64__)
  if (active_isa() == Isa::Avx512) {
    static const bool bf16 = __builtin_cpu_supports("avx512bf16");
    return bf16 ? kernels_avx512_bf16() : kernels_avx512();
  }
  if (active_isa() == Isa::Avx2) return kernels_avx2();
#endif
  return kernels_baseline();
}

}  // namespace outpace
