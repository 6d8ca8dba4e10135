// Packing with AVX2: eight columns at a time.
#include <immintrin.h>

#include "pack.h"
#include "pack_kernel.h"

namespace outpace {
namespace {

struct Avx2Columns {
  static constexpr int64_t kWidth = 8;
  using Dwords = uint32_t __attribute__((vector_size(4 * kWidth)));
  using Halves = uint16_t __attribute__((vector_size(2 * kWidth)));
  using Bytes = uint8_t __attribute__((vector_size(kWidth)));

  // Lane L of a register holds 16 bytes of row 4 L + i: four dwords of four rows are transposed within a lane.
  static void transpose(const uint8_t* rows, int64_t stride, Dwords out[4]) {
    __m256i r[4];
    for (int64_t i = 0; i < 4; ++i) r[i] = lanes(rows + i * stride, rows + (i + 4) * stride);
    const __m256i a = _mm256_unpacklo_epi32(r[0], r[1]), b = _mm256_unpacklo_epi32(r[2], r[3]);
    const __m256i c = _mm256_unpackhi_epi32(r[0], r[1]), d = _mm256_unpackhi_epi32(r[2], r[3]);
    out[0] = reinterpret_cast<Dwords>(_mm256_unpacklo_epi64(a, b));
    out[1] = reinterpret_cast<Dwords>(_mm256_unpackhi_epi64(a, b));
    out[2] = reinterpret_cast<Dwords>(_mm256_unpacklo_epi64(c, d));
    out[3] = reinterpret_cast<Dwords>(_mm256_unpackhi_epi64(c, d));
  }

  static __m256i lanes(const uint8_t* low, const uint8_t* high) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(load(low)), load(high), 1);
  }

  static __m128i load(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
};

}  // namespace

void pack_tile_avx2(const Matrix& matrix, const uint8_t* rows, uint8_t* tile) {
  pack_whole_tile<Avx2Columns>(matrix, rows, tile);
}

}  // namespace outpace
