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

[[gnu::always_inline]] inline void widen_pair(const uint8_t* p, F32& low, F32& high) {
  const U32 pairs = load<U32>(p);
  low = (F32)(pairs << 16);
  high = (F32)(pairs & 0xFFFF0000u);
}

// Channels c and c + 1 (c even) of kLanes slots.
template <KvFormat format>
[[gnu::always_inline]] inline void load_keys(const KvLayout& l, const uint8_t* head, int64_t c, int64_t slot, F32& even,
                                             F32& odd) {
  if constexpr (format == KvFormat::F32) {
    even = load<F32>(head + (c * l.lanes + slot) * 4);
    odd = load<F32>(head + ((c + 1) * l.lanes + slot) * 4);
  } else if constexpr (format == KvFormat::BF16) {
    widen_pair(head + (c / 2 * l.lanes + slot) * 4, even, odd);
  } else {
    const F32 scale = load<F32>(head + l.key_scales + (c / l.group * l.lanes + slot) * 4);
    const auto* keys = reinterpret_cast<const int8_t*>(head) + c * l.lanes + slot;
    even = widen(keys) * scale;
    odd = widen(keys + l.lanes) * scale;
  }
}

// kLanes channels from c on of slots `slot` and `slot` + 1 (slot even). The lanes' groups may differ.
template <KvFormat format>
[[gnu::always_inline]] inline void load_values(const KvLayout& l, const uint8_t* head, int64_t slot, int64_t c,
                                               F32& first, F32& second) {
  if constexpr (format == KvFormat::F32) {
    const uint8_t* values = head + l.values + (slot * l.padded_width + c) * 4;
    first = load<F32>(values);
    second = load<F32>(values + l.padded_width * 4);
  } else if constexpr (format == KvFormat::BF16) {
    widen_pair(head + l.values + (slot / 2 * l.padded_width + c) * 4, first, second);
  } else {
    const auto* values = reinterpret_cast<const int8_t*>(head + l.values) + slot * l.padded_width + c;
    const auto* scales = reinterpret_cast<const float*>(head + l.value_scales) + slot * (l.width / l.group);
    const auto scale = [&](const float* of_slot) {
      if (l.group % kLanes == 0) return splat(of_slot[smaller(c, l.width - 1) / l.group]);
      F32 v;
      for (int i = 0; i < kLanes; ++i) v[i] = of_slot[smaller(c + i, l.width - 1) / l.group];
      return v;
    };
    first = widen(values) * scale(scales);
    second = widen(values + l.padded_width) * scale(scales + l.width / l.group);
  }
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
constexpr int kValueQueries = kLanes == 16 ? 6 : kLanes == 8 ? 4 : 3;
constexpr int kScoreVectors = 16 / kLanes;  // a vector of slots is 16 wide for every instruction set
constexpr int kValueVectors = kLanes == 16 ? 4 : kLanes == 8 ? 2 : 2;

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

// scores[i * stride + lane] = q[i] . key of slot + lane, over kLanes * vectors slots; channels in ascending order.
// q: [Q][K] floats; with pairs, the first half of each is used. `ahead` is what will be read next: asked for on the way.
template <KvFormat format, int Q, int vectors>
inline void score_slots(const KvLayout& l, const uint8_t* head, int64_t slot, const float* q, float* scores,
                        int64_t stride, const uint8_t* ahead) {
  F32 sums[Q][vectors] = {};
  for (int64_t c = 0; c < l.width; c += 2) {
    ahead = prefetch_lines<kLanes * vectors / 16>(ahead);
    if constexpr (kPairs<format>) {
      U32 keys[vectors];
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v) keys[v] = load<U32>(head + (c / 2 * l.lanes + slot + v * kLanes) * 4);
#pragma GCC unroll 16
      for (int i = 0; i < Q; ++i) {
        const U32 pair = U32{} + reinterpret_cast<const uint32_t*>(q + i * l.width)[c / 2];
#pragma GCC unroll 16
        for (int v = 0; v < vectors; ++v) sums[i][v] = dot_pairs(pair, keys[v], sums[i][v]);
      }
      continue;
    }
    F32 even[vectors], odd[vectors];
#pragma GCC unroll 16
    for (int v = 0; v < vectors; ++v) load_keys<format>(l, head, c, slot + v * kLanes, even[v], odd[v]);
#pragma GCC unroll 16
    for (int i = 0; i < Q; ++i) {
      const F32 first = splat(q[i * l.width + c]), second = splat(q[i * l.width + c + 1]);
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v) sums[i][v] = fma(second, odd[v], fma(first, even[v], sums[i][v]));
    }
  }
  for (int i = 0; i < Q; ++i) {
    for (int v = 0; v < vectors; ++v) store(scores + i * stride + v * kLanes, sums[i][v]);
  }
}

// sums[i] += weights[i * stride + n] * value of slot begin + n, over the slots [begin, end) of a block in ascending
// order, for kLanes * vectors channels from c on. With pairs, begin and end are even, and so are weights[i * stride + n
// / 2]. `ahead` is what will be read next: asked for on the way.
template <KvFormat format, int Q, int vectors>
inline void weigh_slots(const KvLayout& l, const uint8_t* head, int64_t begin, int64_t end, int64_t c,
                        const float* weights, int64_t stride, float* sums, int64_t sums_stride, const uint8_t* ahead) {
  constexpr int lines = kLanes * vectors / 16 > 0 ? kLanes * vectors / 16 : 1;
  F32 s[Q][vectors];
  for (int i = 0; i < Q; ++i) {
    for (int v = 0; v < vectors; ++v) s[i][v] = load(sums + i * sums_stride + c + v * kLanes);
  }
  const auto step = [&](int64_t slot, bool use_first, bool use_second) __attribute__((always_inline)) {
    F32 first[vectors], second[vectors];
#pragma GCC unroll 16
    for (int v = 0; v < vectors; ++v) load_values<format>(l, head, slot, c + v * kLanes, first[v], second[v]);
#pragma GCC unroll 16
    for (int i = 0; i < Q; ++i) {
      const float* w = weights + i * stride + (slot - begin);
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v) {
        if (use_first) s[i][v] = fma(splat(w[0]), first[v], s[i][v]);
        if (use_second) s[i][v] = fma(splat(w[1]), second[v], s[i][v]);
      }
    }
  };
  int64_t slot = begin;
  if constexpr (kPairs<format>) {
    for (; slot < end; slot += 2) {
      ahead = prefetch_lines<lines>(ahead);
      U32 values[vectors];
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v) {
        values[v] = load<U32>(head + l.values + (slot / 2 * l.padded_width + c + v * kLanes) * 4);
      }
#pragma GCC unroll 16
      for (int i = 0; i < Q; ++i) {
        const U32 pair = U32{} + reinterpret_cast<const uint32_t*>(weights + i * stride)[(slot - begin) / 2];
#pragma GCC unroll 16
        for (int v = 0; v < vectors; ++v) s[i][v] = dot_pairs(pair, values[v], s[i][v]);
      }
    }
  }
  if (slot % 2 != 0) {
    step(slot - 1, false, true);
    ++slot;
  }
  for (; slot + 2 <= end; slot += 2) {
    ahead = prefetch_lines<lines>(ahead);
    step(slot, true, true);
  }
  if (slot < end) step(slot, true, false);
  for (int i = 0; i < Q; ++i) {
    for (int v = 0; v < vectors; ++v) store(sums + i * sums_stride + c + v * kLanes, s[i][v]);
  }
}

}  // namespace outpace::OUTPACE_TARGET
