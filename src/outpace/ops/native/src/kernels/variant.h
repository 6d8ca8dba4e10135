// The whole table, for the instruction set that the including file is compiled for and names by OUTPACE_TARGET.
#pragma once

#include "row_kernels.h"

#include "attention_range.h"
#include "elementwise.h"
#include "sample_kernels.h"

namespace outpace::OUTPACE_TARGET {

extern const RowKernels table;
const RowKernels table = {
    .rms_norm = rms_norm,
    .add = add,
    .silu_mul = silu_mul,
    .gelu_mul = gelu_mul,
    .clamped_swiglu = clamped_swiglu,
    .add_scaled = add_scaled,
    .scale = scale,
    .soft_cap = soft_cap,
    .rotate = rotate,
    .attention = {.load_queries = load_queries,
                  .range = attention_range,
                  .merge = attention_merge,
                  .finish = attention_finish},
    .largest = largest,
    .divide = divide,
    .at_least = at_least,
    .exp_sum = exp_sum,
    .rough_exp_sum = rough_exp_sum,
    .may_win = may_win,
    .may_win_of = may_win_of,
};

}  // namespace outpace::OUTPACE_TARGET
