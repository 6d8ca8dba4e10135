// Randomness that belongs to the position: Philox4x32-10 and Gumbel noise. Reference: outpace/ops/philox.py.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>

#include "kernels/row_kernels.h"

namespace outpace {

// The four words of a counter's second word `c1`: those of tokens [4 c1, 4 c1 + 4).
inline std::array<uint32_t, 4> philox(const NoiseKey& key, uint32_t c1) {
  uint32_t c[4] = {key.position, c1, key.sample_index, key.stream};
  uint32_t k0 = static_cast<uint32_t>(key.seed), k1 = static_cast<uint32_t>(key.seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53} * c[0], p1 = uint64_t{0xCD9E8D57} * c[2];
    c[0] = static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k0;
    c[1] = static_cast<uint32_t>(p1);
    c[2] = static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k1;
    c[3] = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return {c[0], c[1], c[2], c[3]};
}

inline float gumbel(const NoiseKey& key, uint32_t token) {
  const double u = (philox(key, token >> 2)[token & 3] + 0.5) * 0x1p-32;
  return static_cast<float>(-std::log(-std::log(u)));
}

}  // namespace outpace
