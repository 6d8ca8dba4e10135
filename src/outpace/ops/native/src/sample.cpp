#include "sample.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <mutex>

#include "philox.h"
#include "pool.h"

namespace outpace {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

using Scored = SamplerMemory::Scored;

// Best first, ties to the lowest id.
constexpr auto better = [](const Scored& a, const Scored& b) {  // no function: algorithms shall take it inline
  return a.score > b.score || (a.score == b.score && a.token < b.token);
};

// What is wrong with a row; empty: nothing.
using Reason = std::string;

// The largest logit says whether there is a token; it is NaN if any logit is.
Reason reason_of(float largest) {
  if (largest == kNever) {
    return "no token is allowed here: a constraint, logit_bias or a logits processor forbids them all";
  }
  if (!std::isfinite(largest)) return "a logit is NaN or +inf: the model file or a logits processor is broken";
  return {};
}

Reason reason_of(const char* what, Tokens tokens, int64_t vocabulary) {
  for (const int32_t token : tokens) {
    if (token >= 0 && token < vocabulary) continue;
    return std::string(what) + " names token " + std::to_string(token) + "; the vocabulary is [0, " +
           std::to_string(vocabulary) + ")";
  }
  return {};
}

// Works on one row at a time.
class Sampler {
 public:
  // columns: what the logits belong to; null: to all tokens.
  Sampler(int64_t num_logits, SamplerMemory& memory, const Columns* columns = nullptr)
      : n_(num_logits),
        vocabulary_(columns == nullptr ? num_logits : columns->vocabulary),
        columns_(columns),
        column_of_(memory.columns),
        processed_(memory.processed),
        ids_(memory.ids),
        counts_(memory.counts),
        kept_(memory.kept) {
    ids_.resize(static_cast<size_t>(num_logits + 1));
  }

  Reason sample(const float* logits, const SamplingRow& row, int64_t k, int64_t* tokens) {
    if (Reason reason = process(logits, row); !reason.empty()) return reason;
    if (row.params.greedy()) {
      most_likely(k);
    } else {
      draw(row, k);
    }
    write(k, tokens);
    return {};
  }

  Reason probs(const float* logits, const SamplingRow& row, double* p) {
    if (Reason reason = process(logits, row); !reason.empty()) return reason;
    if (row.params.greedy()) {
      most_likely(1);
    } else {
      filter(row.params);
      if (all_) keep_at_least(kNever);
    }
    write_probs(p);
    return {};
  }

  // The k most likely tokens of the raw logits, and so the samples where SamplingBatch::is_argmax().
  Reason most_likely(const float* logits, int64_t k, int64_t* tokens) {
    if (Reason reason = take(logits); !reason.empty()) return reason;
    most_likely(k);
    write(k, tokens);
    return {};
  }

  void sample_columns(const float* logits, const SamplingBatch& batch, int64_t r, int64_t k, const Best& best) {
    const SamplingRow row = batch.is_argmax() ? SamplingRow{} : batch.row(r);
    const bool greedy = batch.is_argmax() || row.params.greedy();
    const Reason reason = batch.is_argmax() ? take(logits) : process(logits, row);
    float total = 0;
    kept_.clear();
    if (reason.empty()) {
      total = largest_ + static_cast<float>(std::log(row_kernels().rough_exp_sum(x_, largest_, n_)));
      if (greedy) {
        most_likely(k);
      } else {
        draw(row, k);
      }
    }
    for (int64_t i = 0; i < k; ++i) {
      const bool some = i < static_cast<int64_t>(kept_.size()) && kept_[i].score > kNever;
      best.tokens[i] = some ? kept_[i].token : -1;
      best.scores[i] = some ? kept_[i].score : kNever;
      const float noise = some && !greedy ? gumbel(row.key, static_cast<uint32_t>(kept_[i].token)) : 0;
      best.logprobs[i] = some ? std::min(kept_[i].score - noise - total, 0.0f) : kNever;
    }
  }

  Reason most_likely_probs(const float* logits, double* p) {
    if (Reason reason = take(logits); !reason.empty()) return reason;
    most_likely(1);
    write_probs(p);
    return {};
  }

 private:
  // -- the processed logits ------------------------------------------------------------------------------------------

  // x_ := the logits as they are; largest_ is their largest.
  Reason take(const float* logits) {
    x_ = logits;
    largest_ = row_kernels().largest(logits, n_);
    return reason_of(largest_);
  }

  // x_ := penalties, bias, mask, temperature; largest_ is their largest.
  Reason process(const float* logits, const SamplingRow& row) {
    const SamplingParams& p = row.params;
    const bool edits = p.penalises() || !row.bias_tokens.empty() || row.mask != nullptr;
    if (!edits && p.greedy()) return take(logits);
    processed_.resize(static_cast<size_t>(n_));
    float* x = processed_.data();
    if (edits) {
      std::memcpy(x, logits, static_cast<size_t>(n_) * sizeof(float));
      if (Reason reason = edit(row, x); !reason.empty()) return reason;
    }
    if (p.greedy()) return take(x);
    largest_ = row_kernels().divide(edits ? x : logits, static_cast<float>(p.temperature), x, n_);
    x_ = x;
    return reason_of(largest_);
  }

  Reason edit(const SamplingRow& row, float* x) {
    if (row.params.penalises()) {
      if (Reason reason = reason_of("the prompt", row.prompt, vocabulary_); !reason.empty()) return reason;
      if (Reason reason = reason_of("the output", row.output, vocabulary_); !reason.empty()) return reason;
    }
    if (Reason reason = reason_of("logit_bias", row.bias_tokens, vocabulary_); !reason.empty()) return reason;
    find_columns();
    if (row.params.penalises()) penalise(row, x);
    for (size_t i = 0; i < row.bias_tokens.size(); ++i) {
      change(x, row.bias_tokens[i], [&](float logit) { return logit + row.biases[i]; });
    }
    forget_columns();
    if (row.mask == nullptr) return {};
    for (int64_t column = 0; column < n_; ++column) {
      const int32_t token = token_of(column);
      if ((row.mask[token / 32] >> (token % 32) & 1) == 0) x[column] = kNever;
    }
    return {};
  }

  int32_t token_of(int64_t column) const {
    return columns_ == nullptr ? static_cast<int32_t>(column) : columns_->token(column);
  }

  // Between these two, column_of_ tells a token's column, -1: it has none.
  void find_columns() {
    if (columns_ == nullptr) return;
    if (static_cast<int64_t>(column_of_.size()) < vocabulary_) column_of_.resize(static_cast<size_t>(vocabulary_), -1);
    for (int64_t column = 0; column < n_; ++column) column_of_[token_of(column)] = static_cast<int32_t>(column);
  }
  void forget_columns() {
    if (columns_ == nullptr) return;
    for (int64_t column = 0; column < n_; ++column) column_of_[token_of(column)] = -1;
  }

  // x of a token := by(x), if it has one.
  template <class By>
  void change(float* x, int32_t token, By by) {
    const int64_t column = columns_ == nullptr ? token : column_of_[token];
    if (column >= 0) x[column] = by(x[column]);
  }

  void penalise(const SamplingRow& row, float* x) {
    const SamplingParams& p = row.params;
    if (static_cast<int64_t>(counts_.size()) < vocabulary_) {
      counts_.resize(static_cast<size_t>(vocabulary_));  // zeros between calls
    }
    if (p.repetition_penalty != 1) {
      const auto factor = static_cast<float>(p.repetition_penalty);
      for (const Tokens tokens : {row.prompt, row.output}) {
        for (const int32_t token : tokens) {
          if (counts_[token]++ != 0) continue;
          change(x, token, [&](float logit) { return logit > 0 ? logit / factor : logit * factor; });
        }
      }
      for (const Tokens tokens : {row.prompt, row.output}) {
        for (const int32_t token : tokens) counts_[token] = 0;
      }
    }
    if (p.presence_penalty == 0 && p.frequency_penalty == 0) return;
    for (const int32_t token : row.output) ++counts_[token];
    for (const int32_t token : row.output) {
      if (counts_[token] == 0) continue;
      change(x, token, [&](float logit) {
        logit -= static_cast<float>(p.presence_penalty);
        return logit - static_cast<float>(p.frequency_penalty) * static_cast<float>(counts_[token]);
      });
      counts_[token] = 0;
    }
  }

  // -- the most likely tokens ----------------------------------------------------------------------------------------

  // kept_ := all tokens with x >= threshold, in order of their ids.
  void keep_at_least(float threshold) {
    const int64_t count = row_kernels().at_least(x_, n_, threshold, ids_.data());
    kept_.clear();
    for (int64_t i = 0; i < count; ++i) kept_.push_back({x_[ids_[i]], token_of(ids_[i])});
  }

  // kept_ := the k most likely tokens, best first.
  void most_likely(int64_t k) {
    if (k == 1) {
      keep_at_least(largest_);
      kept_.front() = *std::min_element(kept_.begin(), kept_.end(), better);
      kept_.erase(kept_.begin() + 1, kept_.end());
      return;
    }
    for (const float depth : kDepths) {
      keep_at_least(largest_ - depth);
      if (static_cast<int64_t>(kept_.size()) >= k) break;
    }
    const auto end = kept_.begin() + std::min<int64_t>(k, static_cast<int64_t>(kept_.size()));
    std::nth_element(kept_.begin(), end, kept_.end(), better);
    std::sort(kept_.begin(), end, better);
    kept_.erase(end, kept_.end());
  }

  // How far below the best to look, until enough tokens are found.
  static constexpr float kDepths[] = {4, 8, 16, 32, 128, std::numeric_limits<float>::infinity()};

  // -- filters -------------------------------------------------------------------------------------------------------

  // Applies the filters one after another. all_: whether all tokens are left, and kept_ is undefined; else kept_ has
  // those that are. largest_ is the largest logit that is left.
  void filter(const SamplingParams& p) {
    all_ = true;
    if (p.top_n_sigma > 0) keep_sigma(p.top_n_sigma);
    if (0 < p.top_k && p.top_k < static_cast<double>(n_)) keep_most_likely(static_cast<int64_t>(p.top_k));
    if (p.typical_p < 1) keep_typical(p.typical_p);
    if (p.top_p < 1) keep_mass(p.top_p);
    if (p.min_p > 0) keep_near(p.min_p);
  }

  // The first filter: keeps the logits within n standard deviations of the largest (arXiv:2411.07641, algorithm 1).
  void keep_sigma(double n) {
    int64_t count = 0;
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < n_; ++i) {
      if (x_[i] == kNever) continue;
      sum += x_[i];
      ++count;
    }
    const double mean = sum / static_cast<double>(count);
    for (int64_t i = 0; i < n_; ++i) {
      if (x_[i] != kNever) squares += (x_[i] - mean) * (x_[i] - mean);
    }
    const double lowest = largest_ - n * std::sqrt(squares / static_cast<double>(count));
    keep_at_least(std::nextafter(static_cast<float>(lowest), kNever));
    std::erase_if(kept_, [&](const Scored& s) { return s.score < lowest; });
    all_ = false;
  }

  void keep_most_likely(int64_t k) {
    if (all_) {
      most_likely(k);
    } else {
      keep_best(k);
    }
    all_ = false;
  }

  // Keeps the tokens whose information is nearest to the entropy, until their mass reaches `mass` (arXiv:2202.00666,
  // equation 6). That is the same as the logits nearest to the expected one. May drop the largest.
  void keep_typical(double mass) {
    if (all_) keep_at_least(std::numeric_limits<float>::lowest());
    double sum = 0, weighted = 0;
    for (const Scored& s : kept_) {
      const double d = below_largest(s), p = std::exp(d);
      sum += p;
      if (p > 0) weighted += p * d;
    }
    const double expected = weighted / sum;
    const auto distance = [&](const Scored& s) { return std::fabs(below_largest(s) - expected); };
    const Cut cut = cut_at(mass, sum, 0, [&](const Scored& a, const Scored& b) {
      const double da = distance(a), db = distance(b);
      return da < db || (da == db && a.token < b.token);
    });
    if (cut != Cut::done) return;
    all_ = false;
    largest_ = kNever;
    for (const Scored& s : kept_) largest_ = std::max(largest_, s.score);
  }

  // Sum of e^(x - largest) over the tokens that are left.
  double total() const {
    if (all_) return row_kernels().exp_sum(x_, largest_, n_);
    double sum = 0;
    for (const Scored& s : kept_) sum += std::exp(below_largest(s));
    return sum;
  }

  double below_largest(const Scored& s) const { return static_cast<double>(s.score) - largest_; }

  enum class Cut { done, not_reached, too_close };

  // Keeps the most likely tokens up to the one with which their mass reaches `mass`.
  void keep_mass(double mass) {
    if (!all_) {
      cut_at(mass, total(), 0, better);
      return;
    }
    // A rough sum decides, unless the mass is reached so narrowly that only the exact one can tell where.
    const double rough = row_kernels().rough_exp_sum(x_, largest_, n_);
    for (const float depth : kDepths) {
      keep_at_least(largest_ - depth);
      Cut cut = cut_at(mass, rough, 1e-5, better);
      if (cut == Cut::too_close) cut = cut_at(mass, total(), 0, better);
      if (cut != Cut::done) continue;
      all_ = false;
      return;
    }
  }

  // Drops what comes behind the token with which the mass is reached. Few tokens are usually enough, so these are taken
  // from a heap one by one; only then are all others sorted.
  template <class Before>
  Cut cut_at(double mass, double sum, double margin, Before before) {
    const auto behind = [&](const Scored& a, const Scored& b) { return before(b, a); };
    std::make_heap(kept_.begin(), kept_.end(), behind);
    double reached = 0;
    const size_t few = 64 + kept_.size() / 8;
    size_t taken = 0;
    for (auto end = kept_.end(); end != kept_.begin(); ++taken) {
      if (taken == few) std::sort(kept_.begin(), end, behind);
      if (taken < few) std::pop_heap(kept_.begin(), end, behind);  // the first of [begin, end) goes behind the others
      --end;
      reached += std::exp(below_largest(*end)) / sum;
      if (std::fabs(reached - mass) < margin) return Cut::too_close;
      if (reached < mass) continue;
      kept_.erase(kept_.begin(), end);
      return Cut::done;
    }
    return Cut::not_reached;
  }

  // Keeps the tokens with at least `fraction` of the largest probability.
  void keep_near(double fraction) {
    const double sum = total(), lowest = fraction * (1.0 / sum);
    if (all_) keep_at_least(largest_ + static_cast<float>(std::log(fraction)) - 0.01f);
    std::erase_if(kept_, [&](const Scored& s) { return !(std::exp(below_largest(s)) / sum >= lowest); });
    all_ = false;
  }

  // -- noise ---------------------------------------------------------------------------------------------------------

  // kept_ := the k best of x + noise, best first.
  void draw(const SamplingRow& row, int64_t k) {
    filter(row.params);
    if (all_) return draw_of_all(row.key, k);
    for (Scored& s : kept_) s.score += gumbel(row.key, static_cast<uint32_t>(s.token));
    keep_best(k);
  }

  void keep_best(int64_t k) {
    const auto end = kept_.begin() + std::min<int64_t>(k, static_cast<int64_t>(kept_.size()));
    std::partial_sort(kept_.begin(), end, kept_.end(), better);
    kept_.erase(end, kept_.end());
  }

  void draw_of_all(const NoiseKey& key, int64_t k) {
    // The k most likely tokens' scores are a first bar that the winners must reach.
    most_likely(k);
    float bar = std::numeric_limits<float>::infinity();
    for (const Scored& s : kept_) bar = std::min(bar, s.score + gumbel(key, static_cast<uint32_t>(s.token)));
    if (static_cast<int64_t>(kept_.size()) < k) bar = kNever;
    kept_.clear();
    // Takes in the columns first + ids_[0 ... count), and raises the bar.
    const auto take_in = [&](int64_t first, int64_t count) {
      for (int64_t i = 0; i < count; ++i) {
        const int64_t column = first + ids_[i];
        const int32_t token = token_of(column);
        const Scored s{x_[column] + gumbel(key, static_cast<uint32_t>(token)), token};
        if (s.score >= bar) kept_.push_back(s);
      }
      if (static_cast<int64_t>(kept_.size()) > k) {
        keep_best(k);
        bar = kept_.back().score;
      }
    };
    if (columns_ != nullptr) {
      int64_t first = 0;
      for (const Tokens tokens : {columns_->first, columns_->more}) {
        const auto size = static_cast<int64_t>(tokens.size());
        take_in(first, row_kernels().may_win_of(x_ + first, tokens.data(), key, size, bar, ids_.data()));
        first += size;
      }
    } else {
      for (int64_t begin = 0; begin < n_; begin += kStretch) {
        take_in(0, row_kernels().may_win(x_, key, begin, std::min(n_, begin + kStretch), bar, ids_.data()));
      }
    }
    keep_best(k);
  }

  static constexpr int64_t kStretch = 2048;  // tokens between two rises of the bar

  // -- results -------------------------------------------------------------------------------------------------------

  // The best k tokens; those that may not come fill up, lowest ids first.
  void write(int64_t k, int64_t* tokens) const {
    int64_t count = 0;
    for (const Scored& s : kept_) tokens[count++] = s.token;
    for (int64_t id = 0; count < k; ++id) {
      if (std::find(tokens, tokens + kept_.size(), id) == tokens + kept_.size()) tokens[count++] = id;
    }
  }

  // The distribution over kept_.
  void write_probs(double* p) const {
    std::fill_n(p, n_, 0.0);
    double largest = kNever;
    for (const Scored& s : kept_) largest = std::max<double>(largest, s.score);
    double sum = 0;
    for (const Scored& s : kept_) sum += p[s.token] = std::exp(s.score - largest);
    for (const Scored& s : kept_) p[s.token] /= sum;
  }

  const int64_t n_, vocabulary_;
  const Columns* columns_;
  std::vector<int32_t>& column_of_;  // all -1 between edits
  const float* x_ = nullptr;
  float largest_ = kNever;
  bool all_ = true;
  std::vector<float>& processed_;
  std::vector<int32_t>&ids_, &counts_;
  std::vector<Scored>& kept_;  // the tokens in hand
};

// The rows that failed, in their order, whichever thread had them.
class Failures {
 public:
  void add(int64_t row, Reason reason) {
    if (reason.empty()) return;
    const std::scoped_lock lock(mutex_);
    error_.rows.emplace_back(row, std::move(reason));
  }

  void throw_if_any() {
    if (error_.rows.empty()) return;
    std::sort(error_.rows.begin(), error_.rows.end());
    throw error_;
  }

 private:
  std::mutex mutex_;
  SamplingError error_;
};

// Calls each(sampler, r), which returns a reason, for every row, shared out over threads.
template <class Each>
void for_rows(int threads, SamplerMemories& memories, int64_t rows, int64_t vocabulary, Each each) {
  if (static_cast<int>(memories.size()) < threads) memories.resize(threads);
  Failures failures;
  Pool::get().run(rows == 1 ? 1 : threads, [&](const Member& m) {
    const auto [begin, end] = m.share(rows);
    if (begin == end) return;
    Sampler sampler(vocabulary, memories[m.index]);
    for (int64_t r = begin; r < end; ++r) failures.add(r, each(sampler, r));
  });
  failures.throw_if_any();
}

float log_total(const float* logits, float largest, int64_t vocabulary) {
  return static_cast<float>(largest + std::log(row_kernels().exp_sum(logits, largest, vocabulary)));
}

}  // namespace

SamplingRow SamplingBatch::row(int64_t r) const {
  SamplingRow row;
  std::memcpy(&row.params, params + r * static_cast<int64_t>(std::size(kSamplingParams)), sizeof row.params);
  row.key = {.seed = seeds[r], .position = positions[r], .sample_index = sample_indices[r], .stream = streams[r]};
  row.prompt = prompts[r];
  row.output = outputs[r];
  row.bias_tokens = bias_tokens[r];
  row.biases = biases[r];
  if (masks != nullptr && has_mask[r]) row.mask = masks + r * mask_words;
  return row;
}

void sample(int threads, SamplerMemories& memories, const float* logits, int64_t vocabulary, const SamplingBatch& batch,
            int64_t k, int64_t* tokens) {
  for_rows(threads, memories, batch.num_rows, vocabulary, [&](Sampler& sampler, int64_t r) {
    const float* x = logits + r * vocabulary;
    if (batch.is_argmax()) return sampler.most_likely(x, k, tokens + r * k);
    return sampler.sample(x, batch.row(r), k, tokens + r * k);
  });
}

void sample_columns(SamplerMemory& memory, const float* logits, const Columns& columns, const SamplingBatch& batch,
                    int64_t r, int64_t k, const Best& best) {
  Sampler(columns.size(), memory, &columns).sample_columns(logits, batch, r, k, best);
}

void probs(int threads, SamplerMemories& memories, const float* logits, int64_t vocabulary, const SamplingBatch& batch,
           double* p) {
  for_rows(threads, memories, batch.num_rows, vocabulary, [&](Sampler& sampler, int64_t r) {
    const float* x = logits + r * vocabulary;
    if (batch.is_argmax()) return sampler.most_likely_probs(x, p + r * vocabulary);
    return sampler.probs(x, batch.row(r), p + r * vocabulary);
  });
}

void logprobs(int threads, const float* logits, int64_t vocabulary, Tokens tokens, float* values) {
  const auto rows = static_cast<int64_t>(tokens.size());
  Failures failures;
  Pool::get().run(rows == 1 ? 1 : threads, [&](const Member& m) {
    const auto [begin, end] = m.share(rows);
    for (int64_t r = begin; r < end; ++r) {
      const float* x = logits + r * vocabulary;
      const float largest = row_kernels().largest(x, vocabulary);
      failures.add(r, reason_of(largest));
      values[r] = x[tokens[r]] - log_total(x, largest, vocabulary);
    }
  });
  failures.throw_if_any();
}

void top_k(int threads, SamplerMemories& memories, const float* logits, int64_t rows, int64_t vocabulary, int64_t k,
           int64_t* tokens, float* values) {
  for_rows(threads, memories, rows, vocabulary, [&](Sampler& sampler, int64_t r) {
    const float* x = logits + r * vocabulary;
    Reason reason = sampler.most_likely(x, k, tokens + r * k);
    if (!reason.empty()) return reason;
    const float total = log_total(x, x[tokens[r * k]], vocabulary);
    for (int64_t i = 0; i < k; ++i) values[r * k + i] = x[tokens[r * k + i]] - total;
    return reason;
  });
}

}  // namespace outpace
