// From logits to tokens: the distribution of outpace.types.SamplingParams, and the Gumbel-max sample from it.
// Specification: outpace/ops/reference/sample.py. Noise is computed only for tokens that can win.
#pragma once

#include <cstdint>
#include <exception>
#include <iterator>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kernels/row_kernels.h"

namespace outpace {

// A row of outpace.ops.sampling.SamplingBatch.params: its columns, in their order.
struct SamplingParams {
  double temperature;  // 0: greedy
  double top_k, top_p, min_p, typical_p, top_n_sigma;
  double repetition_penalty, presence_penalty, frequency_penalty;

  bool greedy() const { return temperature == 0; }
  bool penalises() const { return repetition_penalty != 1 || presence_penalty != 0 || frequency_penalty != 0; }
};
constexpr const char* kSamplingParams[] = {
    "temperature", "top_k",       "top_p",
    "min_p",       "typical_p",   "top_n_sigma",
    "repetition_penalty", "presence_penalty", "frequency_penalty",
};
static_assert(sizeof(SamplingParams) == std::size(kSamplingParams) * sizeof(double));

using Tokens = std::span<const int32_t>;

// How one row of logits becomes a token.
struct SamplingRow {
  SamplingParams params;
  NoiseKey key;
  Tokens prompt, output;  // given if params.penalises()
  Tokens bias_tokens;
  std::span<const float> biases;   // as many
  const uint32_t* mask = nullptr;  // packed allowed tokens [ceil(V / 32)], or null
};

// A list for each row: values[bounds[2 r] ... bounds[2 r + 1]).
template <class T>
struct Ragged {
  const T* values = nullptr;
  const int64_t* bounds = nullptr;

  std::span<const T> operator[](int64_t row) const {
    if (bounds == nullptr) return {};
    return {values + bounds[2 * row], values + bounds[2 * row + 1]};
  }
};

// The arrays of outpace.ops.sampling.SamplingBatch, checked; one entry a row.
struct SamplingBatch {
  int64_t num_rows = 0;
  const double* params = nullptr;  // [R, std::size(kSamplingParams)]; null: each token is that of the largest logit
  const uint64_t* seeds = nullptr;
  const uint32_t *sample_indices = nullptr, *positions = nullptr, *streams = nullptr;
  Ragged<int32_t> prompts, outputs;
  const uint32_t* masks = nullptr;  // [R, mask_words], or null
  const bool* has_mask = nullptr;
  int64_t mask_words = 0;
  Ragged<int32_t> bias_tokens;
  Ragged<float> biases;

  bool is_argmax() const { return params == nullptr; }
  SamplingRow row(int64_t r) const;  // if not is_argmax()
};

// Rows that have no token, and why, in the words of outpace/ops/sampling.py.
struct SamplingError : std::exception {
  std::vector<std::pair<int64_t, std::string>> rows;
  const char* what() const noexcept override { return "rows of logits from which no token can be sampled"; }
};

// Working memory of one thread, kept from call to call.
struct SamplerMemory {
  struct Scored {
    float score;
    int32_t token;
  };
  std::vector<float> processed;
  std::vector<int32_t> ids, counts, columns;
  std::vector<Scored> kept;
};

// These take logits [R, V] and share the rows out over threads. They throw SamplingError.
using SamplerMemories = std::vector<SamplerMemory>;
void sample(int threads, SamplerMemories& memories, const float* logits, int64_t vocabulary, const SamplingBatch& batch,
            int64_t k, int64_t* tokens);  // [R, k]
void probs(int threads, SamplerMemories& memories, const float* logits, int64_t vocabulary, const SamplingBatch& batch,
           double* p);  // [R, V]

// What tokens the columns of a row stand for, where they are not the vocabulary: `first`, then `more`, none twice.
struct Columns {
  Tokens first, more;
  int64_t vocabulary;

  int64_t size() const { return static_cast<int64_t>(first.size() + more.size()); }
  int32_t token(int64_t column) const {
    const auto num_first = static_cast<int64_t>(first.size());
    return column < num_first ? first[column] : more[column - num_first];
  }
};

// The k best tokens of one row, best first, -1 where there are no more; their log-softmax before the filters, and the
// scores that put them in this order (logit / temperature, and noise): [k] each.
struct Best {
  int64_t* tokens;
  float *logprobs, *scores;
};

// Finds them for row r of a batch, on the calling thread. Reference: reference/sample.py, best_of_columns.
void sample_columns(SamplerMemory& memory, const float* logits, const Columns& columns, const SamplingBatch& batch,
                    int64_t r, int64_t k, const Best& best);

// Raw log-softmax of one token per row [R].
void logprobs(int threads, const float* logits, int64_t vocabulary, Tokens tokens, float* values);
// The k most likely tokens of each row and their raw log-softmax, both [R, k].
void top_k(int threads, SamplerMemories& memories, const float* logits, int64_t rows, int64_t vocabulary, int64_t k,
           int64_t* tokens, float* values);

}  // namespace outpace
