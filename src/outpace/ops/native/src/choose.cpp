#include "choose.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <unordered_map>

#include "philox.h"
#include "pool.h"

namespace outpace {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

using Scored = ChoiceMemory::Scored;

// Best first, ties to the lowest id.
bool better(const Scored& a, const Scored& b) { return a.score > b.score || (a.score == b.score && a.token < b.token); }

enum class Outcome { fine, none_allowed, not_numbers };

// Works on one row at a time.
class Chooser {
 public:
  Chooser(int64_t vocabulary, ChoiceMemory& memory)
      : n_(vocabulary), processed_(memory.processed), ids_(memory.ids), kept_(memory.kept) {
    ids_.resize(static_cast<size_t>(vocabulary + 1));
  }

  Outcome sample(const float* logits, const ChoiceRow& row, int64_t k, int64_t* tokens) {
    x_ = logits;
    if (!row.plain()) {
      if (const Outcome outcome = process(row); outcome != Outcome::fine) return outcome;
    }
    if (!row.sampling->greedy() && largest_ > kNever) {
      draw(row, k);
    } else {
      most_likely(k);
    }
    if (kept_.empty()) return Outcome::not_numbers;
    write(k, tokens);
    return Outcome::fine;
  }

  Outcome law(const float* logits, const ChoiceRow& row, double* p) {
    x_ = logits;
    if (const Outcome outcome = process(row); outcome != Outcome::fine) return outcome;
    if (row.sampling->greedy()) {
      most_likely(1);
    } else if (!filter(*row.sampling)) {
      keep_at_least(kNever);
    }
    if (kept_.empty()) return Outcome::not_numbers;
    std::fill_n(p, n_, 0.0);
    const double shift = kept_largest();
    double total = 0;
    for (const Scored& s : kept_) total += p[s.token] = std::exp(s.score - shift);
    for (const Scored& s : kept_) p[s.token] /= total;
    return Outcome::fine;
  }

  // The k most likely tokens of the row itself.
  Outcome top(const float* logits, int64_t k, int64_t* tokens) {
    x_ = logits;
    most_likely(k);
    if (kept_.empty()) return Outcome::not_numbers;
    write(k, tokens);
    return Outcome::fine;
  }

 private:
  // -- the processed logits ------------------------------------------------------------------------------------------

  // x_ := penalties, bias, mask, temperature; largest_ is their largest.
  Outcome process(const ChoiceRow& row) {
    const Sampling& sampling = *row.sampling;
    processed_.resize(static_cast<size_t>(n_));
    float* x = processed_.data();
    const bool edits = sampling.penalises() || !sampling.logit_bias.empty() || row.mask != nullptr;
    const auto temperature = static_cast<float>(sampling.temperature);
    if (edits || sampling.greedy()) {
      std::memcpy(x, x_, static_cast<size_t>(n_) * sizeof(float));
      edit(row, x);
      if (row_kernels().largest(x, n_) == kNever) return any_number(x) ? Outcome::none_allowed : Outcome::not_numbers;
    }
    if (!sampling.greedy()) largest_ = row_kernels().divide(edits ? x : x_, temperature, x, n_);
    x_ = x;
    return Outcome::fine;
  }

  bool any_number(const float* x) const {
    return std::any_of(x, x + n_, [](float v) { return v == v; });
  }

  void edit(const ChoiceRow& row, float* x) {
    const Sampling& s = *row.sampling;
    if (s.repetition_penalty != 1) {
      Tokens seen = *row.prompt;
      seen.insert(seen.end(), row.output->begin(), row.output->end());
      std::sort(seen.begin(), seen.end());
      seen.erase(std::unique(seen.begin(), seen.end()), seen.end());
      const auto factor = static_cast<float>(s.repetition_penalty);
      for (const int32_t token : seen) x[token] = x[token] > 0 ? x[token] / factor : x[token] * factor;
    }
    if (s.presence_penalty != 0 || s.frequency_penalty != 0) {
      std::unordered_map<int32_t, int64_t> counts;
      for (const int32_t token : *row.output) ++counts[token];
      for (const auto& [token, count] : counts) {
        x[token] -= static_cast<float>(s.presence_penalty);
        x[token] -= static_cast<float>(s.frequency_penalty) * static_cast<float>(count);
      }
    }
    for (const auto& [token, bias] : s.logit_bias) x[token] += static_cast<float>(bias);
    if (row.mask == nullptr) return;
    for (int64_t token = 0; token < n_; ++token) {
      if ((row.mask[token / 32] >> (token % 32) & 1) == 0) x[token] = kNever;
    }
  }

  // -- the most likely tokens ----------------------------------------------------------------------------------------

  // kept_ := all tokens with x >= threshold, in order of their ids.
  void keep_at_least(float threshold) {
    const int64_t count = row_kernels().at_least(x_, n_, threshold, ids_.data());
    kept_.clear();
    for (int64_t i = 0; i < count; ++i) kept_.push_back({x_[ids_[i]], ids_[i]});
  }

  // kept_ := the k most likely tokens, best first; fewer only if the others are not numbers.
  void most_likely(int64_t k) {
    const float top = row_kernels().largest(x_, n_);
    if (k == 1) {
      keep_at_least(top);
      if (!kept_.empty()) kept_.erase(kept_.begin() + 1, kept_.end());
      return;
    }
    for (const float depth : kDepths) {
      keep_at_least(top - depth);
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

  // Applies top-k, top-p and min-p; false if all tokens stay (kept_ is then undefined).
  bool filter(const Sampling& s) {
    bool some = 0 < s.top_k && s.top_k < n_;
    if (some) most_likely(s.top_k);
    if (s.top_p < 1) some = keep_mass(s.top_p, some) || some;
    if (s.min_p > 0) {
      keep_near(s.min_p, some);
      some = true;
    }
    return some;
  }

  // Sum of e^(x - largest) over the law as it is.
  double total(bool some) const {
    if (!some) return row_kernels().exp_sum(x_, largest_, n_);
    double sum = 0;
    for (const Scored& s : kept_) sum += std::exp(static_cast<double>(s.score) - largest_);
    return sum;
  }

  enum class Cut { done, not_reached, too_close };

  // Keeps the most likely tokens up to the one with which their mass reaches `mass`; false if all stay.
  bool keep_mass(double mass, bool some) {
    if (some) return cut_at(mass, total(true), 0) == Cut::done;
    // A rough sum decides, unless the mass is reached so narrowly that only the exact one can tell where.
    const double rough = row_kernels().rough_exp_sum(x_, largest_, n_);
    for (const float depth : kDepths) {
      keep_at_least(largest_ - depth);
      Cut cut = cut_at(mass, rough, 1e-5);
      if (cut == Cut::too_close) cut = cut_at(mass, total(false), 0);
      if (cut == Cut::done) return true;
    }
    return false;
  }

  // Drops what comes behind the token with which the mass is reached. Few tokens are usually enough, so these are taken
  // from a heap one by one; only then are all others sorted.
  Cut cut_at(double mass, double sum, double margin) {
    const auto worse = [](const Scored& a, const Scored& b) { return better(b, a); };
    std::make_heap(kept_.begin(), kept_.end(), worse);
    double reached = 0;
    const size_t few = 64 + kept_.size() / 8;
    size_t taken = 0;
    for (auto end = kept_.end(); end != kept_.begin(); ++taken) {
      if (taken == few) std::sort(kept_.begin(), end, worse);
      if (taken < few) std::pop_heap(kept_.begin(), end, worse);  // the best of [begin, end) goes behind the others
      --end;
      reached += std::exp(static_cast<double>(end->score) - largest_) / sum;
      if (std::fabs(reached - mass) < margin) return Cut::too_close;
      if (reached < mass) continue;
      kept_.erase(kept_.begin(), end);
      return Cut::done;
    }
    return Cut::not_reached;
  }

  // Keeps the tokens with at least `share` of the largest probability.
  void keep_near(double share, bool some) {
    const double sum = total(some), least = share * (1.0 / sum);
    if (!some) keep_at_least(largest_ + static_cast<float>(std::log(share)) - 0.01f);
    std::erase_if(kept_,
                  [&](const Scored& s) { return !(std::exp(static_cast<double>(s.score) - largest_) / sum >= least); });
  }

  double kept_largest() const {
    return std::max_element(kept_.begin(), kept_.end(), [](auto& a, auto& b) { return a.score < b.score; })->score;
  }

  // -- drawing -------------------------------------------------------------------------------------------------------

  // kept_ := the k best of x + noise, best first.
  void draw(const ChoiceRow& row, int64_t k) {
    if (!filter(*row.sampling)) return draw_of_all(row.key, k);
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
    for (int64_t begin = 0; begin < n_; begin += kStretch) {
      const int64_t count = row_kernels().may_win(x_, key, begin, std::min(n_, begin + kStretch), bar, ids_.data());
      for (int64_t i = 0; i < count; ++i) {
        const Scored s{x_[ids_[i]] + gumbel(key, static_cast<uint32_t>(ids_[i])), ids_[i]};
        if (s.score >= bar) kept_.push_back(s);
      }
      if (static_cast<int64_t>(kept_.size()) > k) {
        keep_best(k);
        bar = kept_.back().score;
      }
    }
    keep_best(k);
  }

  static constexpr int64_t kStretch = 2048;  // tokens between two rises of the bar

  // The best k tokens; those that may not come fill up, lowest ids first.
  void write(int64_t k, int64_t* tokens) const {
    int64_t count = 0;
    for (const Scored& s : kept_) tokens[count++] = s.token;
    for (int64_t id = 0; count < k; ++id) {
      if (std::find(tokens, tokens + kept_.size(), id) == tokens + kept_.size()) tokens[count++] = id;
    }
  }

  const int64_t n_;
  const float* x_ = nullptr;
  float largest_ = kNever;
  std::vector<float>& processed_;
  std::vector<int32_t>& ids_;
  std::vector<Scored>& kept_;  // the tokens in hand
};

// Calls each(chooser, r) for every row, shared out over threads; throws what an outcome means.
template <class Each>
void for_rows(int threads, ChoiceMemories& memories, int64_t rows, int64_t vocabulary, Each each) {
  if (static_cast<int>(memories.size()) < threads) memories.resize(threads);
  std::atomic<Outcome> worst{Outcome::fine};
  Pool::get().run(rows == 1 ? 1 : threads, [&](const Member& m) {
    const auto [begin, end] = m.share(rows);
    if (begin == end) return;
    Chooser chooser(vocabulary, memories[m.index]);
    for (int64_t r = begin; r < end; ++r) {
      if (const Outcome outcome = each(chooser, r); outcome != Outcome::fine) worst = outcome;
    }
  });
  if (worst == Outcome::none_allowed) {
    throw std::invalid_argument("no token is allowed here: the constraint's mask or logit_bias forbids them all");
  }
  if (worst == Outcome::not_numbers) {
    throw std::invalid_argument("a row of logits holds no number: the model, or what it was given, is broken");
  }
}

float log_total(const float* logits, int64_t vocabulary) {
  const float largest = row_kernels().largest(logits, vocabulary);
  return static_cast<float>(largest + std::log(row_kernels().exp_sum(logits, largest, vocabulary)));
}

}  // namespace

void check_choice(const ChoiceRow& row, int64_t vocabulary) {
  const auto check = [&](int64_t token, const char* where) {
    if (token >= 0 && token < vocabulary) return;
    throw std::invalid_argument(std::string(where) + " names token " + std::to_string(token) +
                                "; the vocabulary is [0, " + std::to_string(vocabulary) + ")");
  };
  for (const auto& [token, bias] : row.sampling->logit_bias) check(token, "logit_bias");
  for (const auto& tokens : {row.prompt, row.output}) {
    if (tokens == nullptr) continue;
    for (const int32_t token : *tokens) check(token, "the history");
  }
}

void sample(int threads, ChoiceMemories& memories, const float* logits, int64_t vocabulary,
            const std::vector<ChoiceRow>& rows, int64_t k, int64_t* tokens) {
  for_rows(threads, memories, static_cast<int64_t>(rows.size()), vocabulary, [&](Chooser& chooser, int64_t r) {
    return chooser.sample(logits + r * vocabulary, rows[r], k, tokens + r * k);
  });
}

void law(int threads, ChoiceMemories& memories, const float* logits, int64_t vocabulary,
         const std::vector<ChoiceRow>& rows, double* p) {
  for_rows(threads, memories, static_cast<int64_t>(rows.size()), vocabulary, [&](Chooser& chooser, int64_t r) {
    return chooser.law(logits + r * vocabulary, rows[r], p + r * vocabulary);
  });
}

void logprobs(int threads, const float* logits, int64_t vocabulary, const Tokens& tokens, float* values) {
  const auto rows = static_cast<int64_t>(tokens.size());
  Pool::get().run(rows == 1 ? 1 : threads, [&](const Member& m) {
    const auto [begin, end] = m.share(rows);
    for (int64_t r = begin; r < end; ++r) {
      const float* x = logits + r * vocabulary;
      values[r] = x[tokens[r]] - log_total(x, vocabulary);
    }
  });
}

void top_k(int threads, ChoiceMemories& memories, const float* logits, int64_t rows, int64_t vocabulary, int64_t k,
           int64_t* tokens, float* values) {
  for_rows(threads, memories, rows, vocabulary, [&](Chooser& chooser, int64_t r) {
    const float* x = logits + r * vocabulary;
    const Outcome outcome = chooser.top(x, k, tokens + r * k);
    const float total = log_total(x, vocabulary);
    for (int64_t i = 0; outcome == Outcome::fine && i < k; ++i) values[r * k + i] = x[tokens[r * k + i]] - total;
    return outcome;
  });
}

}  // namespace outpace
