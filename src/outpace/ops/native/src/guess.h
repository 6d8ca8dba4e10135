// What a drafter network guesses, one job of the thread pool: a decoder layer over features, a head over some tokens,
// the best of them. Specification: outpace/ops/compose.py.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "network.h"

namespace outpace {

// Rows of a head, and the token of each.
struct HeadRows {
  std::shared_ptr<const Matrix> matrix;
  std::vector<int32_t> tokens;
  int32_t largest_token;
};

// What a Python GuessLayer says.
struct Guesser {
  Layer layer;  // wq, wk and wv are as wide as a token's embedding and the features together; attn_norm: the token's
  std::shared_ptr<const Matrix> embedding;
  std::shared_ptr<const FloatVector> feature_norm, head_norm;
  std::shared_ptr<const FloatVector> bo;  // may be null
  HeadRows head;
  bool residual_is_normed, output_is_normed;
};

// Throws std::invalid_argument where the shapes do not fit together.
void check_guesser(const Guesser& guesser);

// A call. Shapes were checked: features [T, D]; further: for each segment, rows of the head that only it has, or null.
struct GuessInput {
  const Guesser* guesser;
  const float* features;
  KvStore* kv;
  const Plan* plan;
  const std::vector<const HeadRows*>* further;
  const SamplingBatch* batch;
  int64_t k;
};

// For the S scored rows of the plan: the layer's output [S, D] (normed by the head's norm, if so), and the k best tokens
// [S, k] as `sample_columns` tells them.
struct GuessOutput {
  float* states;
  int64_t* tokens;
  float *logprobs, *scores;
};

// One row of the target's hidden states: where each tap has it.
using TapRow = std::vector<const float*>;

// y [rows, out] = fc [tap, tap, ...] (+ the last tap): taps of `width` numbers each, RMS-normalised by `norms`, if any,
// or all together by `joint_norm`. Specification: compose_fuse.
struct Fusion {
  std::shared_ptr<const Matrix> fc;
  std::vector<std::shared_ptr<const FloatVector>> norms;
  std::shared_ptr<const FloatVector> joint_norm;  // may be null
  float eps;
  bool adds_last;
};
void fuse(int threads, Workspace& w, const Fusion& fusion, const std::vector<TapRow>& rows, int64_t width, float* y);

void guess(int threads, Workspace& w, const GuessInput& in, const GuessOutput& out);

}  // namespace outpace
