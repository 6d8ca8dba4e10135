// The kernels on rows (all but matrix products) that exist once per instruction set, as a table of functions.
#pragma once

#include <cstdint>

#include "../attention.h"

namespace outpace {

// What the noise of a row's tokens is a function of (docs/decisions/0004).
struct NoiseKey {
  uint64_t seed;
  uint32_t position, sample_index, stream;
};

// No g = -log(-log(u)) is larger: u <= (2^32 - 1/2) 2^-32.
constexpr float kLargestNoise = 22.9f;

struct RowKernels {
  // y = x / sqrt(mean(x^2) + eps) * weight, one row [n]. May be in place. Reference: ReferenceOps.rms_norm.
  void (*rms_norm)(const float* x, const float* weight, float* y, int64_t n, float eps);
  // y = a + b, one row [n]. May be in place.
  void (*add)(const float* a, const float* b, float* y, int64_t n);
  // y = gate * sigmoid(gate) * up, one row [n]. May be in place. Reference: ReferenceOps.gated_mlp.
  void (*silu_mul)(const float* gate, const float* up, float* y, int64_t n);
  // y = gelu(gate) * up, in the tanh form, one row [n]. May be in place.
  void (*gelu_mul)(const float* gate, const float* up, float* y, int64_t n);
  // y = gate / (1 + e^(-1.702 gate)) * (up + 1) of clamped gate and up, one row [n]. May be in place.
  void (*clamped_swiglu)(const float* gate, const float* up, float* y, int64_t n);
  // y += x * factor [n].
  void (*add_scaled)(const float* x, float factor, float* y, int64_t n);
  // y = x * factor [n]. May be in place.
  void (*scale)(const float* x, float factor, float* y, int64_t n);
  // y = cap * tanh(x / cap) [n]. May be in place.
  void (*soft_cap)(const float* x, float cap, float* y, int64_t n);
  // Turns the pairs (i, i + half) of a head [2 half] by the angles with these cosines and sines. Reference: _rotate.
  void (*rotate)(float* head, const float* cos, const float* sin, int64_t half);

  AttentionKernels attention;

  // The largest of x [n]; -inf for none, NaN if any is NaN.
  float (*largest)(const float* x, int64_t n);
  // y = x / divisor [n]; returns the largest y, NaN if any is NaN. May be in place.
  float (*divide)(const float* x, float divisor, float* y, int64_t n);
  // Writes the i with x[i] >= threshold in ascending order to ids (room for n + 1); returns how many.
  int64_t (*at_least)(const float* x, int64_t n, float threshold, int32_t* ids);
  // Sum of e^(x - shift) over x [n], shift >= x, in float64; the rough one has terms of float32, and is within 1e-5 of
  // it.
  double (*exp_sum)(const float* x, double shift, int64_t n);
  double (*rough_exp_sum)(const float* x, float shift, int64_t n);
  // Writes the tokens in [begin, end), begin % 64 == 0, whose x + noise may reach `score` to ids (room for all and one
  // more); returns how many. Leaves out none that does; lets in few that do not.
  int64_t (*may_win)(const float* x, const NoiseKey& key, int64_t begin, int64_t end, float score, int32_t* ids);
  // The same for x [n] of some tokens: writes their places.
  int64_t (*may_win_of)(const float* x, const int32_t* tokens, const NoiseKey& key, int64_t n, float score,
                        int32_t* ids);
};

// The table of the instruction set that this process uses (matmul/isa.h).
const RowKernels& row_kernels();

}  // namespace outpace
