// Reading keys and values from the paged cache, and the two products of attention with them.
// Reference: reference/attention.py and reference/storage.py.
#pragma once

#include "../attention.h"
#include "elementwise.h"

namespace outpace::OUTPACE_TARGET {

// -- reading the storage -------------------------------------------------------------------------------------------

// Widens kLanes int8.
[[gnu::always_inline]] inline F32 widen(const int8_t* p) {
#if defined(__AVX512F__)
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif defined(__AVX2__)
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#else
  F32 v;
  for (int i = 0; i < kLanes; ++i) v[i] = p[i];
  return v;
#endif
}

// Bytes of a number; of bfloat16, of the pair that takes its place.
template <KvFormat format>
constexpr int64_t kNumber = format == KvFormat::Int8 ? 1 : 4;

// kLanes numbers of the first or the second line of a pair, `line` bytes apart: those of an even channel (of keys) or
// slot (of values) and of the next. The two lines of bfloat16 are one line of pairs. int8 is not yet scaled.
template <KvFormat format, bool second>
[[gnu::always_inline]] inline F32 load_line(const uint8_t* pair, int64_t line) {
  if constexpr (format == KvFormat::BF16) {
    const U32 both = load<U32>(pair);
    return (F32)(second ? both & 0xFFFF0000u : both << 16);
  } else if constexpr (format == KvFormat::F32) {
    return load<F32>(pair + second * line);
  } else {
    return widen(reinterpret_cast<const int8_t*>(pair + second * line));
  }
}

// From a pair of lines to the next.
template <KvFormat format>
constexpr int64_t pair_bytes(int64_t line) {
  return format == KvFormat::BF16 ? line : 2 * line;
}

// The scales of kLanes channels from c on, whose groups differ.
[[gnu::noinline]] inline F32 lane_scales(const KvLayout& l, const float* of_slot, int64_t c) {
  F32 scales;
  for (int i = 0; i < kLanes; ++i) scales[i] = of_slot[smaller(c + i, l.width - 1) / l.group];
  return scales;
}

// Whether the products of a format are dot products of bfloat16 pairs, on CPUs that have them: queries and weights are
// then rounded to bfloat16 too; sums stay float32.
#if defined(__AVX512BF16__)
template <KvFormat format>
constexpr bool kPairs = format == KvFormat::BF16;

// sum + a.low * b.low + a.high * b.high, lane by lane.
[[gnu::always_inline]] inline F32 dot_pairs(U32 a, U32 b, F32 sum) {
  return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}

// Rounds 16 floats to 8 pairs.
[[gnu::always_inline]] inline void store_pairs(uint32_t* to, F32 x) {
  const __m256bh pairs = _mm512_cvtneps_pbh(x);
  std::memcpy(to, &pairs, sizeof pairs);
}
#else
template <KvFormat format>
constexpr bool kPairs = false;
[[gnu::always_inline]] inline F32 dot_pairs(U32, U32, F32 sum) { return sum; }
[[gnu::always_inline]] inline void store_pairs(uint32_t*, F32) {}
#endif

// Asks for the next lines of a stream; returns where it goes on.
template <int lines>
[[gnu::always_inline]] inline const uint8_t* prefetch_lines(const uint8_t* p) {
#pragma GCC unroll 4
  for (int i = 0; i < lines; ++i) __builtin_prefetch(p + 64 * i);
  return p + 64 * lines;
}

// -- the two products ----------------------------------------------------------------------------------------------

// How many queries share a loaded key or value: as many as the registers hold.
constexpr int kScoreQueries = kLanes == 16 ? 12 : kLanes == 8 ? 4 : 3;
constexpr int kValueQueries = kLanes == 16 ? 12 : kLanes == 8 ? 4 : 3;
constexpr int kScoreVectors = 16 / kLanes;  // a vector of slots is 16 wide for every instruction set
constexpr int kUnit = kLanes == 16 ? 32 : 16;  // slots whose keys meet the queries together
constexpr int kFewQueries = 6;                 // so few meet two units of slots together, or four vectors of channels

// Vectors of channels that Q queries meet together.
template <int Q>
constexpr int kValueVectors = kLanes == 16 && Q <= kFewQueries ? 4 : 2;

// Calls body<Q>(first) over blocks of Q = most, then smaller ones, until `n` is covered.
template <int most, class Body>
[[gnu::always_inline]] inline void in_blocks(int64_t n, Body&& body) {
  int64_t first = 0;
  const auto run = [&]<int Q>() {
    if constexpr (Q <= most && (Q != 4 || most == 4)) {
      for (; n - first >= Q; first += Q) body.template operator()<Q>(first);
    }
  };
  run.template operator()<12>();
  run.template operator()<6>();
  run.template operator()<4>();
  run.template operator()<3>();
  run.template operator()<2>();
  run.template operator()<1>();
}

// Where the keys of some slots begin: a block's part of a head, and an offset in it.
struct KeyPlace {
  const uint8_t* head;
  int64_t slot;
  const uint8_t* ahead;  // what will be read later: asked for on the way
};

// scores[i * stride + lane] = q[i] . key of lane, over `vectors` vectors of slots at each place; channels in ascending
// order. q: [K][Q] floats, or [K/2][Q] pairs. asks: for what is ahead, a line with every line of keys.
template <KvFormat format, int Q, int vectors, int places>
inline void score_slots(const KvLayout& l, const KeyPlace (&keys)[places], const float* q, float* scores,
                        int64_t stride, bool asks) {
  constexpr int all = places * vectors;
  const int64_t line = l.lanes * kNumber<format>;
  const uint8_t *pair[places], *ahead[places];
  const float* scales[places];
#pragma GCC unroll 2
  for (int p = 0; p < places; ++p) {
    pair[p] = keys[p].head + keys[p].slot * kNumber<format>;
    ahead[p] = asks ? keys[p].ahead : pair[p];
    scales[p] = reinterpret_cast<const float*>(keys[p].head + l.key_scales) + keys[p].slot;
  }
  int64_t left = l.group;  // channels that still have these scales
  F32 sums[Q][all] = {};
  const auto step = [&]<bool second> __attribute__((always_inline)) {
    F32 key[all];
#pragma GCC unroll 16
    for (int v = 0; v < all; ++v) {
      const int64_t lane = v % vectors * kLanes;
      key[v] = load_line<format, second>(pair[v / vectors] + lane * kNumber<format>, line);
      if constexpr (format == KvFormat::Int8) key[v] = key[v] * load(scales[v / vectors] + lane);
    }
#pragma GCC unroll 16
    for (int i = 0; i < Q; ++i) {
      const F32 number = splat(q[second * Q + i]);
#pragma GCC unroll 16
      for (int v = 0; v < all; ++v) sums[i][v] = fma(number, key[v], sums[i][v]);
    }
    if constexpr (format == KvFormat::Int8) {
      if (--left > 0) return;
      left = l.group;
      for (int p = 0; p < places; ++p) scales[p] += l.lanes;
    }
  };
  for (int64_t c = 0; c < l.width; c += 2) {
#pragma GCC unroll 2
    for (int p = 0; p < places; ++p) ahead[p] = prefetch_lines<(vectors * kLanes + 15) / 16>(ahead[p]);
    if constexpr (kPairs<format>) {
      U32 pairs[all];
#pragma GCC unroll 16
      for (int v = 0; v < all; ++v) pairs[v] = load<U32>(pair[v / vectors] + v % vectors * kLanes * 4);
#pragma GCC unroll 16
      for (int i = 0; i < Q; ++i) {
        const U32 two = U32{} + reinterpret_cast<const uint32_t*>(q)[i];
#pragma GCC unroll 16
        for (int v = 0; v < all; ++v) sums[i][v] = dot_pairs(two, pairs[v], sums[i][v]);
      }
      q += Q;
    } else {
      step.template operator()<false>();
      step.template operator()<true>();
      q += 2 * Q;
    }
#pragma GCC unroll 2
    for (int p = 0; p < places; ++p) pair[p] += pair_bytes<format>(line);
  }
#pragma GCC unroll 16
  for (int i = 0; i < Q; ++i) {
#pragma GCC unroll 16
    for (int v = 0; v < all; ++v) store(scores + i * stride + v * kLanes, sums[i][v]);
  }
}

// A run of slots in one block.
struct Run {
  const uint8_t* head;
  int64_t begin, end;    // in the block
  const uint8_t* ahead;  // what will be read next: asked for on the way
};

// sums[i] += weights[i * stride + n] * value of slot n, over the slots of `runs`, counted from 0, in ascending order,
// for kLanes * vectors channels from c on. apart: the channels of a vector have scales of different groups. With pairs, the runs' edges are even, and so are weights[i * stride + n / 2].
template <KvFormat format, int Q, int vectors, int64_t stride, bool apart>
inline void weigh_slots(const KvLayout& l, const Run* runs, int64_t num_runs, int64_t c, const float* weights,
                        float* sums, int64_t sums_stride) {
  constexpr int lines = kLanes * vectors / 16 > 0 ? kLanes * vectors / 16 : 1;
  const int64_t line = l.padded_width * kNumber<format>, groups = l.width / l.group;
  int64_t group_of[vectors];  // where the group of every vector's first channel is
  for (int v = 0; v < vectors; ++v) group_of[v] = smaller(c + v * kLanes, l.width - 1) / l.group;
  F32 s[Q][vectors];
#pragma GCC unroll 16
  for (int i = 0; i < Q; ++i) {
#pragma GCC unroll 16
    for (int v = 0; v < vectors; ++v) s[i][v] = load(sums + i * sums_stride + c + v * kLanes);
  }
  for (int64_t n = 0; n < num_runs; ++n) {
    const Run& run = runs[n];
    const uint8_t* ahead = run.ahead + 64 * c;
    const uint8_t* pair = run.head + l.values + (run.begin / 2 * pair_bytes<format>(line)) + c * kNumber<format>;
    const float* scales = reinterpret_cast<const float*>(run.head + l.value_scales) + run.begin * groups;
    const auto step = [&]<bool second> __attribute__((always_inline)) {
      F32 values[vectors];
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v) {
        values[v] = load_line<format, second>(pair + v * kLanes * kNumber<format>, line);
        if constexpr (format == KvFormat::Int8) {
          values[v] = values[v] * (apart ? lane_scales(l, scales, c + v * kLanes) : splat(scales[group_of[v]]));
        }
      }
#pragma GCC unroll 16
      for (int i = 0; i < Q; ++i) {
        const F32 weight = splat(weights[i * stride]);
#pragma GCC unroll 16
        for (int v = 0; v < vectors; ++v) s[i][v] = fma(weight, values[v], s[i][v]);
      }
      ++weights;
      scales += groups;
    };
    if constexpr (kPairs<format>) {
      for (const auto* end = weights + (run.end - run.begin) / 2; weights < end; ++weights) {
        ahead = prefetch_lines<lines>(ahead);
        U32 values[vectors];
#pragma GCC unroll 16
        for (int v = 0; v < vectors; ++v) values[v] = load<U32>(pair + v * kLanes * 4);
#pragma GCC unroll 16
        for (int i = 0; i < Q; ++i) {
          const U32 two = U32{} + reinterpret_cast<const uint32_t*>(weights)[i * stride];
#pragma GCC unroll 16
          for (int v = 0; v < vectors; ++v) s[i][v] = dot_pairs(two, values[v], s[i][v]);
        }
        pair += line;
      }
      continue;
    }
    int64_t left = run.end - run.begin;
    if (run.begin % 2 != 0 && left > 0) {
      step.template operator()<true>();
      pair += pair_bytes<format>(line);
      --left;
    }
    for (; left >= 2; left -= 2) {
      ahead = prefetch_lines<lines>(ahead);
      step.template operator()<false>();
      step.template operator()<true>();
      pair += pair_bytes<format>(line);
    }
    if (left > 0) step.template operator()<false>();
  }
#pragma GCC unroll 16
  for (int i = 0; i < Q; ++i) {
#pragma GCC unroll 16
    for (int v = 0; v < vectors; ++v) store(sums + i * sums_stride + c + v * kLanes, s[i][v]);
  }
}

}  // namespace outpace::OUTPACE_TARGET
