// From logits to tokens: the law of outpace.types.SamplingParams, and the Gumbel-max draw from it.
// Specification: outpace/ops/reference/choose.py. Noise is computed only for tokens that can win.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "kernels/row_kernels.h"

namespace outpace {

struct Sampling {
  double temperature = 0;  // 0: greedy
  int64_t top_k = 0;
  double top_p = 1, min_p = 0;
  double repetition_penalty = 1, presence_penalty = 0, frequency_penalty = 0;
  std::vector<std::pair<int64_t, double>> logit_bias;

  bool greedy() const { return temperature == 0; }
  bool penalises() const { return repetition_penalty != 1 || presence_penalty != 0 || frequency_penalty != 0; }
};

using Tokens = std::vector<int32_t>;

// How one row of logits becomes a token, as outpace.types.Row says it.
struct ChoiceRow {
  std::shared_ptr<const Sampling> sampling;
  NoiseKey key;
  std::shared_ptr<const Tokens> prompt, output;  // given only if sampling->penalises()
  const uint32_t* mask = nullptr;                // packed allowed tokens [ceil(V / 32)], or null

  // Whether the token is the largest raw logit's.
  bool plain() const {
    return sampling->greedy() && !sampling->penalises() && sampling->logit_bias.empty() && mask == nullptr;
  }
};

// Throws std::invalid_argument if a bias or a token of the history is outside [0, vocabulary).
void check_choice(const ChoiceRow& row, int64_t vocabulary);

// Working memory of one thread, kept from call to call.
struct ChoiceMemory {
  struct Scored {
    float score;
    int32_t token;
  };
  std::vector<float> processed;
  std::vector<int32_t> ids;
  std::vector<Scored> kept;
};

// These take logits [R, V] and share the rows out over threads. They throw std::invalid_argument if no token of a row
// is allowed, or its logits are not numbers.
using ChoiceMemories = std::vector<ChoiceMemory>;
void sample(int threads, ChoiceMemories& memories, const float* logits, int64_t vocabulary,
            const std::vector<ChoiceRow>& rows, int64_t k, int64_t* tokens);  // [R, k]
void law(int threads, ChoiceMemories& memories, const float* logits, int64_t vocabulary,
         const std::vector<ChoiceRow>& rows, double* p);  // [R, V]

// Raw log-softmax of one token per row [R].
void logprobs(int threads, const float* logits, int64_t vocabulary, const Tokens& tokens, float* values);
// The k most likely tokens of each row and their raw log-softmax, both [R, k].
void top_k(int threads, ChoiceMemories& memories, const float* logits, int64_t rows, int64_t vocabulary, int64_t k,
           int64_t* tokens, float* values);

}  // namespace outpace
