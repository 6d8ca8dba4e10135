// Packing with AVX-512: sixteen columns, a whole tile at once.
#include <immintrin.h>

#include "pack.h"
#include "pack_kernel.h"

namespace outpace {
namespace {

struct Avx512Columns {
  static constexpr int64_t kWidth = 16;
  using Dwords = uint32_t __attribute__((vector_size(4 * kWidth)));
  using Halves = uint16_t __attribute__((vector_size(2 * kWidth)));
  using Bytes = uint8_t __attribute__((vector_size(kWidth)));

  // Lane L of a register holds 16 bytes of row 4 L + i: four dwords of four rows are transposed within a lane.
  static void transpose(const uint8_t* rows, int64_t stride, Dwords out[4]) {
    __m512i r[4];
    for (int64_t i = 0; i < 4; ++i) r[i] = lanes(rows + i * stride, 4 * stride);
    const __m512i a = _mm512_unpacklo_epi32(r[0], r[1]), b = _mm512_unpacklo_epi32(r[2], r[3]);
    const __m512i c = _mm512_unpackhi_epi32(r[0], r[1]), d = _mm512_unpackhi_epi32(r[2], r[3]);
    out[0] = reinterpret_cast<Dwords>(_mm512_unpacklo_epi64(a, b));
    out[1] = reinterpret_cast<Dwords>(_mm512_unpackhi_epi64(a, b));
    out[2] = reinterpret_cast<Dwords>(_mm512_unpacklo_epi64(c, d));
    out[3] = reinterpret_cast<Dwords>(_mm512_unpackhi_epi64(c, d));
  }

  static __m512i lanes(const uint8_t* p, int64_t step) {
    __m512i v = _mm512_castsi128_si512(load(p));
    v = _mm512_inserti32x4(v, load(p + step), 1);
    v = _mm512_inserti32x4(v, load(p + 2 * step), 2);
    return _mm512_inserti32x4(v, load(p + 3 * step), 3);
  }

  static __m128i load(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
};

}  // namespace

void pack_tile_avx512(const Matrix& matrix, const uint8_t* rows, uint8_t* tile) {
  pack_whole_tile<Avx512Columns>(matrix, rows, tile);
}

}  // namespace outpace
