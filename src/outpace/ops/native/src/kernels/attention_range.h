// Attention of a tile over one range of positions: scores, weights, weighted sum. Reference: reference/attention.py.
#pragma once

#include "attention_products.h"

namespace outpace::OUTPACE_TARGET {

constexpr float kNever = -__builtin_inff();
constexpr int64_t kSlack = 32;  // floats before position `begin` in a row of scores

template <KvFormat format>
class RangePass {
 public:
  RangePass(const AttentionTile& tile, int64_t begin, float* partials, float* scratch)
      : t_(tile),
        l_(*tile.layout),
        begin_(begin),
        end_(begin + kRange),
        partials_(partials),
        partial_stride_(partial_stride(l_.padded_width)),
        scores_(scratch + kSlack),
        draft_scores_(scratch + tile.queries() * kScoreStride),
        draft_stride_(draft_stride(tile.draft_end - tile.draft_begin)) {}

  void run() {
    score();
    // One after the other for all queries, so that they need not wait for their own largest score.
    for_queries([&](const Seen& seen, int64_t query) { find_largest(seen, query); });
    for_queries([&](const Seen& seen, int64_t query) { weigh(seen, query); });
    add_values();
  }

 private:
  int64_t low(const Seen& seen) const { return larger(begin_, seen.first); }
  int64_t high(const Seen& seen) const { return smaller(end_, seen.last); }
  // End of the positions that lie in the slot of the same number.
  int64_t straight(const Seen& seen) const { return smaller(end_, seen.contiguous); }
  bool on_path(const Seen& seen) const { return seen.last > seen.contiguous && high(seen) > seen.contiguous; }

  template <class Body>
  void for_queries(Body body) const {
    for (int64_t row = 0; row < t_.rows; ++row) {
      for (int64_t i = row * t_.group; i < (row + 1) * t_.group; ++i) body(t_.seen[row], i);
    }
  }

  const uint8_t* head(int64_t slot) const { return t_.blocks[t_.table[slot / l_.block_size]] + t_.head; }
  float* scores(int64_t query, int64_t position) const { return scores_ + query * kScoreStride + (position - begin_); }

  // The weights of positions `position` and `position` + 1 (even), where they are kept as pairs: in place of scores
  // that were read before.
  uint32_t* pairs(int64_t query, int64_t position) const {
    return reinterpret_cast<uint32_t*>(scores(query, begin_)) + (position - begin_) / 2;
  }

  // Scores of all queries for all slots that some row sees; others come out as they may.
  void score() {
    int64_t first = end_, last = begin_;
    bool paths = false;
    for (int64_t row = 0; row < t_.rows; ++row) {
      const Seen& seen = t_.seen[row];
      if (low(seen) < straight(seen)) {
        first = smaller(first, low(seen));
        last = larger(last, straight(seen));
      }
      paths = paths || on_path(seen);
    }
    score_interval(first, last, scores_ - begin_, kScoreStride);
    if (paths) score_interval(t_.draft_begin, t_.draft_end, draft_scores_ + kSlack - t_.draft_begin, draft_stride_);
  }

  // out[query * stride + slot] = score of the slot. Writes up to 31 floats before and behind the interval, units of
  // slots in ascending order, so that every slot's own score is written last.
  void score_interval(int64_t first, int64_t last, float* out, int64_t stride) {
    if (first >= last) return;
    int64_t slot = first;
    if (kLanes == 16 && l_.block_size % kUnit == 0) {
      slot = first / kUnit * kUnit;
      if (t_.queries() <= kFewQueries) {
        for (; slot + kUnit < last; slot += 2 * kUnit) {
          const KeyPlace places[] = {place(slot), place(slot + kUnit)};
          score_unit(places, out + slot, stride);
        }
      }
      for (; slot + 16 < last; slot += kUnit) score_unit({place(slot)}, out + slot, stride);
      if (slot < last) score_unit<1>({place(slot)}, out + slot, stride);
      return;
    }
    while (slot < last) {
      const int64_t block = slot / l_.block_size * l_.block_size;
      const int64_t end = smaller(last, block + l_.block_size);
      for (slot = block + (slot - block) / 16 * 16; slot < end; slot += 16) {
        score_unit<kScoreVectors>({place(slot)}, out + slot, stride);
      }
      slot = end;
    }
  }

  KeyPlace place(int64_t slot) const {
    const uint8_t* now = head(slot);
    const int64_t offset = slot % l_.block_size;
    return {now, offset, now + l_.values + offset * 2 * l_.width};
  }

  // Scores of all queries for the slots at one or two places; the first queries ask for the values there, a line of them
  // with every line of keys.
  template <int vectors = kUnit / kLanes, int places>
  void score_unit(const KeyPlace (&keys)[places], float* out, int64_t stride) {
    in_blocks<places == 1 ? kScoreQueries : kFewQueries>(t_.queries(), [&]<int Q>(int64_t i) {
      score_slots<format, Q, vectors>(l_, keys, t_.q + i * l_.width, out + i * stride, stride, i == 0);
    });
  }

  // The vectors that hold the scores of [first, last), at fixed places.
  float* from(int64_t query, int64_t first) const { return scores(query, begin_ + (first - begin_) / kLanes * kLanes); }
  float* to(int64_t query, int64_t last) const { return from(query, last + kLanes - 1); }

  // Puts a query's scores in order of position, -inf where nothing is seen, and notes the largest.
  void find_largest(const Seen& seen, int64_t query) {
    float* partial = partials_ + query * partial_stride_;
    for (int64_t c = 0; c < l_.padded_width; c += kLanes) store(partial + c, F32{});
    partial[l_.padded_width] = kNever;
    partial[l_.padded_width + 1] = 0.0f;
    const int64_t first = low(seen), last = high(seen);
    if (first >= last) return;
    const float* draft = draft_scores_ + kSlack + query * draft_stride_ - t_.draft_begin;
    for (int64_t p = larger(first, seen.contiguous); p < last; ++p) {
      *scores(query, p) = draft[seen.path[p - seen.contiguous]];
    }
    float *const begin = from(query, first), *const end = to(query, last);
    for (float* p = begin; p < scores(query, first); ++p) *p = kNever;
    for (float* p = scores(query, last); p < end; ++p) *p = kNever;
    F32 best = load(begin);
    for (const float* p = begin + kLanes; p < end; p += kLanes) best = max(load(p), best);
    partial[l_.padded_width] = max_lanes(best);
  }

  // Turns a query's scores into weights e^(score - largest); notes their sum.
  void weigh(const Seen& seen, int64_t query) {
    const int64_t first = low(seen), last = high(seen);
    if (first >= last) return;
    float* partial = partials_ + query * partial_stride_;
    const F32 largest = splat(partial[l_.padded_width]);
    float *const begin = from(query, first), *const end = to(query, last);
    F32 sums = {};
    for (float* p = begin; p < end; p += kLanes) {
      F32 weights = exp_of_negative(load(p) - largest);
      if constexpr (kPairs<format>) {
        weights = (F32)(((U32)weights + 0x7FFF + ((U32)weights >> 16 & 1)) & 0xFFFF0000u);
        store_pairs(this->pairs(query, begin_ + (p - scores(query, begin_))), weights);
      } else {
        store(p, weights);
      }
      sums += weights;
    }
    partial[l_.padded_width + 1] = sum_lanes(sums);
  }

  // Adds the weighted values: first where every row looks at the same slots, together; the rest row by row.
  void add_values() {
    int64_t first = begin_, last = end_;
    for (int64_t row = 0; row < t_.rows; ++row) {
      first = larger(first, low(t_.seen[row]));
      last = smaller(last, straight(t_.seen[row]));
    }
    if (kPairs<format>) {  // a pair that not all rows see whole is not shared
      first = (first + 1) / 2 * 2;
      last = l_.block_size % 2 == 0 ? last / 2 * 2 : first;
    }
    if (first >= last) first = last = end_;  // nothing in common
    for (int64_t row = 0; row < t_.rows; ++row) add_row(row, begin_, first);
    add_straight(0, t_.queries(), first, last);
    for (int64_t row = 0; row < t_.rows; ++row) add_row(row, last, end_);
  }

  // What a row sees of the positions [first, last).
  void add_row(int64_t row, int64_t first, int64_t last) {
    const Seen& seen = t_.seen[row];
    first = larger(first, low(seen));
    last = smaller(last, high(seen));
    if constexpr (kPairs<format>) return add_row_pairs(row, first, last);
    add_straight(row * t_.group, t_.group, first, smaller(last, seen.contiguous));
    for (int64_t p = larger(first, seen.contiguous); p < last; ++p) {
      const int64_t slot = seen.path[p - seen.contiguous];
      const int64_t offset = slot % l_.block_size;
      const Run one{head(slot), offset, offset + 1, head(slot)};
      add_runs(row * t_.group, t_.group, p, &one, 1);
    }
  }

  // Pair by pair, an unseen half being zero; runs of whole pairs that lie as they are used are added together.
  void add_row_pairs(int64_t row, int64_t first, int64_t last) {
    const Seen& seen = t_.seen[row];
    const int64_t whole =
        smaller(last, seen.contiguous) / 2 * 2;  // end of the pairs that lie in the slots of their number
    for (int64_t p = first / 2 * 2; p < last;) {
      if (p >= first && p < whole && l_.block_size % 2 == 0) {
        add_straight(row * t_.group, t_.group, p, whole);
        p = whole;
        continue;
      }
      const int64_t low_slot = p >= first ? slot_of(seen, p) : -1, high_slot = p + 1 < last ? slot_of(seen, p + 1) : -1;
      for (int64_t i = row * t_.group; i < (row + 1) * t_.group; ++i) add_pair(i, p, low_slot, high_slot);
      p += 2;
    }
  }

  static int64_t slot_of(const Seen& seen, int64_t position) {
    return position < seen.contiguous ? position : seen.path[position - seen.contiguous];
  }

  // Adds the values of two slots, at positions `position` (even) and the next; -1: none.
  void add_pair(int64_t query, int64_t position, int64_t low_slot, int64_t high_slot) {
    const U32 weights = U32{} + *pairs(query, position);
    float* sums = partials_ + query * partial_stride_;
    for (int64_t c = 0; c < l_.padded_width; c += kLanes) {
      const U32 values = low_half(low_slot, c) | low_half(high_slot, c) << 16;
      store(sums + c, dot_pairs(weights, values, load(sums + c)));
    }
  }

  // The values of a slot's channels from c on, in the lower halves of the lanes.
  U32 low_half(int64_t slot, int64_t c) const {
    if (slot < 0) return U32{};
    const int64_t offset = slot % l_.block_size;
    const U32 values = load<U32>(head(slot) + l_.values + (offset / 2 * l_.padded_width + c) * 4);
    return offset % 2 == 0 ? values & 0xFFFFu : values >> 16;
  }

  // Adds the values of the positions [first, last), which lie in the slots of the same number.
  void add_straight(int64_t query, int64_t count, int64_t first, int64_t last) {
    Run runs[kRange];
    int64_t num_runs = 0;
    for (int64_t slot = first; slot < last;) {
      const int64_t block = slot / l_.block_size * l_.block_size, end = smaller(last, block + l_.block_size);
      // The first queries ask for the keys of the next range.
      const bool asks = query == 0 && block + kRange < t_.draft_end;
      runs[num_runs++] = {head(slot), slot - block, end - block, head(asks ? block + kRange : slot)};
      slot = end;
    }
    add_runs(query, count, first, runs, num_runs);
  }

  // Adds the values of runs of slots, which have the positions from `position` on.
  void add_runs(int64_t query, int64_t count, int64_t position, const Run* runs, int64_t num_runs) {
    in_blocks<kValueQueries>(count, [&]<int Q>(int64_t i) {
      const float* weights = scores(query + i, position);
      if constexpr (kPairs<format>) weights = reinterpret_cast<const float*>(pairs(query + i, position));
      float* sums = partials_ + (query + i) * partial_stride_;
      constexpr int64_t most = kLanes * kValueVectors<Q>;
      const auto add = [&]<int vectors>(int64_t c) {
        if (format == KvFormat::Int8 && l_.group % kLanes != 0) {
          weigh_slots<format, Q, vectors, kScoreStride, true>(l_, runs, num_runs, c, weights, sums, partial_stride_);
        } else {
          weigh_slots<format, Q, vectors, kScoreStride, false>(l_, runs, num_runs, c, weights, sums, partial_stride_);
        }
      };
      int64_t c = 0;
      for (; c + most <= l_.padded_width; c += most) add.template operator()<kValueVectors<Q>>(c);
      for (; c < l_.padded_width; c += kLanes) add.template operator()<1>(c);
    });
  }

  const AttentionTile& t_;
  const KvLayout& l_;
  const int64_t begin_, end_;
  float* const partials_;
  const int64_t partial_stride_;
  float* const scores_;
  float* const draft_scores_;
  const int64_t draft_stride_;
};

inline void load_queries(const KvLayout& layout, const float* q, int64_t stride, int64_t rows, int64_t group, float scale,
                         float* to) {
  const bool pairs = layout.format == KvFormat::BF16 && kPairs<KvFormat::BF16>;
  in_blocks<kScoreQueries>(rows * group, [&]<int Q>(int64_t first) {
    for (int64_t i = 0; i < Q; ++i) {
      const float* from = q + (first + i) / group * stride + (first + i) % group * layout.width;
      float* start = to + first * layout.width + i;
      in_vectors(layout.width, [&](int64_t at, int64_t n) {
        const F32 scaled = load_some(from + at, n) * scale;
        if (!pairs) {
          for (int64_t c = 0; c < n; ++c) start[(at + c) * Q] = scaled[c];
          return;
        }
        uint32_t rounded[kLanes / 2];
        store_pairs(rounded, scaled);
        for (int64_t c = 0; c < n / 2; ++c) std::memcpy(start + (at / 2 + c) * Q, rounded + c, sizeof(uint32_t));
      });
    }
  });
}

inline void attention_range(const AttentionTile& tile, int64_t begin, float* partials, float* scratch) {
  switch (tile.layout->format) {
    case KvFormat::F32: return RangePass<KvFormat::F32>(tile, begin, partials, scratch).run();
    case KvFormat::BF16: return RangePass<KvFormat::BF16>(tile, begin, partials, scratch).run();
    case KvFormat::Int8: return RangePass<KvFormat::Int8>(tile, begin, partials, scratch).run();
  }
}

// Two results over different positions become one: both are rescaled to the larger of their largest scores.
inline void attention_merge(float* states, const float* partials, int64_t queries, int64_t padded_width) {
  const int64_t stride = partial_stride(padded_width);
  for (int64_t i = 0; i < queries; ++i) {
    float* state = states + i * stride;
    const float* partial = partials + i * stride;
    float& largest = state[padded_width];
    if (partial[padded_width] == kNever) continue;
    if (largest == kNever) {
      for (int64_t c = 0; c < padded_width + 2; ++c) state[c] = partial[c];
      continue;
    }
    const float together = largest > partial[padded_width] ? largest : partial[padded_width];
    F32 shifts = splat(together);
    shifts[0] = largest;
    shifts[1] = partial[padded_width];
    const F32 factors = exp(shifts - together);
    const F32 a = splat(factors[0]), b = splat(factors[1]);
    for (int64_t c = 0; c < padded_width; c += kLanes) {
      store(state + c, fma(load(partial + c), b, load(state + c) * a));
    }
    largest = together;
    state[padded_width + 1] = fma(splat(partial[padded_width + 1]), b, splat(state[padded_width + 1]) * a)[0];
  }
}

inline void attention_finish(const float* state, float* y, int64_t width, int64_t padded_width, const float* sink) {
  F32 factor = splat(1.0f / state[padded_width + 1]);
  if (sink != nullptr) {
    F32 scores = splat(state[padded_width]);
    scores[0] = *sink;
    const F32 weights = exp(scores - (state[padded_width] > *sink ? state[padded_width] : *sink));
    factor = splat(weights[1] / fma(splat(state[padded_width + 1]), splat(weights[1]), splat(weights[0]))[0]);
  }
  in_vectors(width, [&](int64_t at, int64_t n) { store_some(y + at, load(state + at) * factor, n); });
}

}  // namespace outpace::OUTPACE_TARGET
