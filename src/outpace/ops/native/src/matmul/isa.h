// Which instruction set the kernels use: found once per process, before the first kernel runs.
#pragma once

namespace outpace {

enum class Isa { Baseline, Avx2, Avx512 };  // Avx512 means F, BW, DQ, VL and VNNI

// The best set that this CPU (and operating system) can run, or the one that OUTPACE_ISA names ("baseline", "avx2",
// "avx512"). Throws std::invalid_argument if OUTPACE_ISA is unknown or names a set that this CPU lacks.
Isa active_isa();

// Whether BF16 matrices use BF16 activations and the CPU's BF16 dot product (only with Isa::Avx512).
bool has_bf16_dot();

const char* isa_name(Isa isa);  // as OUTPACE_ISA spells it

// The best set that this CPU can run, whatever OUTPACE_ISA says.
Isa best_isa();

}  // namespace outpace
