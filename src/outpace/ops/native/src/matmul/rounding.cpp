#include "rounding.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "half.h"
#include "layout.h"

namespace outpace {
namespace {

constexpr int kBlock = 32, kSuper = 256;

// Writes d as a half, and returns what a reader makes of it.
float write_half(float d, uint8_t* p) {
  const uint16_t half = half_from_float(d);
  std::memcpy(p, &half, sizeof half);
  return float_from_half(half);
}

float inverse_of(float d) { return d == 0.0F ? 0.0F : 1.0F / d; }

// Within IQ4's table, and a little beyond; NaNs to the low end.
float bounded(float x) {
  x = x > -128.0F ? x : -128.0F;
  return x < 127.0F ? x : 127.0F;
}

// To the nearest integer in [low, high]; NaNs to low.
float nearest(float x, float low, float high) {
  constexpr float kRound = 12582912.0F;  // 1.5 * 2^23: adding it rounds to an integer
  x = x > low ? x : low;
  x = x < high ? x : high;
  return x + kRound - kRound;
}

// The number with the largest magnitude.
float largest_of(const float* x, int n) {
  float largest = 0.0F;
  for (int i = 0; i < n; ++i) {
    if (std::fabs(x[i]) > std::fabs(largest)) largest = x[i];
  }
  return largest;
}

// -- packing codes

// Low nibbles of `run` bytes, then high ones, for codes [2 * run].
void pack_nibbles(const uint8_t* codes, int run, uint8_t* p) {
  for (int i = 0; i < run; ++i) p[i] = static_cast<uint8_t>((codes[i] & 15) | (codes[run + i] & 15) << 4);
}

// The two low bits of 128 codes.
void pack_pairs(const uint8_t* codes, uint8_t* p) {
  for (int i = 0; i < 32; ++i) {
    p[i] = static_cast<uint8_t>((codes[i] & 3) | (codes[32 + i] & 3) << 2 | (codes[64 + i] & 3) << 4 |
                                (codes[96 + i] & 3) << 6);
  }
}

void pack_fifth_bits(const uint8_t* codes, uint8_t* p) {
  uint32_t bits = 0;
  for (int i = 0; i < kBlock; ++i) bits |= static_cast<uint32_t>(codes[i] >> 4) << i;
  std::memcpy(p, &bits, sizeof bits);
}

// -- blocks of 32, by a formula

// d makes the number with the largest magnitude exact: it has the lowest code.
void round_symmetric(Format format, const float* x, uint8_t* block) {
  const int offset = layout::code_offset(format);
  const float d = largest_of(x, kBlock) / static_cast<float>(-offset);
  const float inverse = inverse_of(d);
  write_half(d, block);
  uint8_t codes[kBlock];
  for (int i = 0; i < kBlock; ++i) {
    const float code = x[i] * inverse + (static_cast<float>(offset) + 0.5F);  // truncated below
    const int most = 2 * offset - 1;
    codes[i] = static_cast<uint8_t>(code >= static_cast<float>(most) ? most : code >= 0.0F ? static_cast<int>(code) : 0);
  }
  uint8_t* rest = block + 2;
  if (format == Format::Q5_0) {
    pack_fifth_bits(codes, rest);
    rest += 4;
  }
  pack_nibbles(codes, 16, rest);
}

// The smallest number has code 0, the largest the highest.
void round_with_minimum(Format format, const float* x, uint8_t* block) {
  const int most = format == Format::Q5_1 ? 31 : 15;
  const auto [low, high] = std::minmax_element(x, x + kBlock);
  const float minimum = *low, d = (*high - minimum) / static_cast<float>(most);
  const float inverse = inverse_of(d);
  write_half(d, block);
  write_half(minimum, block + 2);
  uint8_t codes[kBlock];
  for (int i = 0; i < kBlock; ++i) {
    const float code = (x[i] - minimum) * inverse + 0.5F;  // truncated below
    codes[i] = static_cast<uint8_t>(code >= static_cast<float>(most) ? most : code >= 0.0F ? static_cast<int>(code) : 0);
  }
  uint8_t* rest = block + 4;
  if (format == Format::Q5_1) {
    pack_fifth_bits(codes, rest);
    rest += 4;
  }
  pack_nibbles(codes, 16, rest);
}

void round_q8_0(const float* x, uint8_t* block) {
  const float d = std::fabs(largest_of(x, kBlock)) / 127.0F;
  const float inverse = inverse_of(d);
  write_half(d, block);
  for (int i = 0; i < kBlock; ++i) {
    const float code = std::round(x[i] * inverse);
    block[2 + i] =
        static_cast<uint8_t>(std::fabs(code) <= 127.0F ? static_cast<int8_t>(code) : 0);  // else infinite or NaN
  }
}

// -- scales by search
//
// For given codes q, the scale with the smallest error, the sum of w (x - scale q)^2, is (sum of w x q) / (sum of w q^2),
// and takes (sum of w x q)^2 / (sum of w q^2) off the sum of w x^2. So candidates for the codes are tried: x rounded with
// scales that put the largest number at, or somewhat beside, the end of the range.

struct Fit {
  float scale = 0.0F, gain = 0.0F;

  // Keeps the better of this and codes q.
  void see(const float* x, const float* w, const float* q, int n) {
    float products = 0.0F, squares = 0.0F;
    for (int i = 0; i < n; ++i) {
      products += w[i] * x[i] * q[i];
      squares += w[i] * q[i] * q[i];
    }
    if (squares > 0.0F && products * products > gain * squares) {
      scale = products / squares;
      gain = products * products / squares;
    }
  }
};

constexpr float kTooSmall = 1e-30F;  // such numbers count as zeros

// w = x^2: what a number's size adds to a product matters in proportion to it.
void square(const float* x, float* w, int n) {
  for (int i = 0; i < n; ++i) w[i] = x[i] * x[i];
}

// The scale for codes in [low, -low - 1], low being negative.
float fit_scale(const float* x, int n, float low) {
  const float largest = largest_of(x, n);
  if (!(std::fabs(largest) > kTooSmall)) return 0.0F;
  float w[kBlock], q[kBlock];
  square(x, w, n);
  Fit best;
  for (int step = -9; step <= 9; ++step) {
    const float inverse = (low + 0.1F * static_cast<float>(step)) / largest;
    for (int i = 0; i < n; ++i) q[i] = nearest(x[i] * inverse, low, -low - 1.0F);
    best.see(x, w, q, n);
  }
  return best.scale;
}

// The numbers of IQ4's table.
float table_number(int code) {
  constexpr auto table = layout::table(Format::IQ4_NL);
  return static_cast<float>(table.code[code] - 128);
}

// How many midpoints of the table lie below x, for each ceil(2 x) in [-256, 256): midpoints are multiples of 1/2.
struct NearestCodes {
  uint8_t code[512];

  constexpr NearestCodes() : code{} {
    constexpr auto table = layout::table(Format::IQ4_NL);
    for (int place = 0; place < 512; ++place) {
      for (int i = 0; i < 15; ++i) code[place] += place > table.code[i] + table.code[i + 1];
    }
  }
};

// The code of the nearest number in the table.
int nearest_in_table(float x) {
  static constexpr NearestCodes codes;
  const float place = std::ceil(2.0F * bounded(x)) + 256.0F;
  return codes.code[static_cast<int>(place)];
}

float fit_table_scale(const float* x, int n) {
  const float largest = largest_of(x, n);
  if (!(std::fabs(largest) > kTooSmall)) return 0.0F;
  float w[kBlock], q[kBlock];
  square(x, w, n);
  Fit best;
  for (int step = -7; step <= 7; ++step) {
    const float inverse = (table_number(0) + static_cast<float>(step)) / largest;
    for (int i = 0; i < n; ++i) q[i] = table_number(nearest_in_table(x[i] * inverse));
    best.see(x, w, q, n);
  }
  return best.scale;
}

// number = scale * q - minimum, neither negative.
struct Line {
  float scale = 0.0F, minimum = 0.0F;
};

// The line for codes in [0, high] with the smallest sum of w (x - scale q + minimum)^2: least squares for the codes of
// each candidate scale, from high + first on in steps of 0.1.
Line fit_line(const float* x, const float* w, int n, float high, float first, int steps) {
  const auto [smallest, largest] = std::minmax_element(x, x + n);
  const float low = std::min(*smallest, 0.0F), range = *largest - low;
  if (!(range > kTooSmall)) return {0.0F, -low};
  float weights = 0.0F, numbers = 0.0F;
  for (int i = 0; i < n; ++i) {
    weights += w[i];
    numbers += w[i] * x[i];
  }
  Line best;
  float smallest_error = std::numeric_limits<float>::infinity();
  for (int step = 0; step <= steps; ++step) {
    const float inverse = (high + first + 0.1F * static_cast<float>(step)) / range;
    float q[kBlock], codes = 0.0F, squares = 0.0F, products = 0.0F;
    for (int i = 0; i < n; ++i) q[i] = nearest((x[i] - low) * inverse, 0.0F, high);
    for (int i = 0; i < n; ++i) {
      codes += w[i] * q[i];
      squares += w[i] * q[i] * q[i];
      products += w[i] * q[i] * x[i];
    }
    if (!(squares > 0.0F)) continue;
    const float determinant = weights * squares - codes * codes;  // 0 where all codes are the same
    Line line{(weights * products - numbers * codes) / determinant,
              (codes * products - squares * numbers) / determinant};
    if (!(determinant > 0.0F) || line.minimum < 0.0F) line = {products / squares, 0.0F};
    float error = 0.0F;
    for (int i = 0; i < n; ++i) {
      const float difference = line.scale * q[i] - line.minimum - x[i];
      error += w[i] * difference * difference;
    }
    if (error < smallest_error) {
      smallest_error = error;
      best = line;
    }
  }
  return best;
}

// -- blocks of 256

// Rounds scales [n] to multiples of one, in [-most, most - 1], and writes that one as a half; the largest is met best.
float round_scales(const float* scales, int n, float most, uint8_t* d, float* multiples) {
  const float unit = write_half(largest_of(scales, n) / -most, d), inverse = inverse_of(unit);
  for (int i = 0; i < n; ++i) multiples[i] = nearest(scales[i] * inverse, -most, most - 1.0F);
  return unit;
}

// The same for scales that are not negative, in [0, most].
float round_positive(const float* scales, int n, float most, uint8_t* d, float* multiples) {
  const float unit = write_half(largest_of(scales, n) / most, d), inverse = inverse_of(unit);
  for (int i = 0; i < n; ++i) multiples[i] = nearest(scales[i] * inverse, 0.0F, most);
  return unit;
}

// The unsigned codes of n numbers for a line.
void round_codes(const float* x, int n, Line line, float low, float high, uint8_t* codes) {
  const float inverse = inverse_of(line.scale);
  for (int i = 0; i < n; ++i) {
    codes[i] = static_cast<uint8_t>(nearest((x[i] + line.minimum) * inverse, low, high) - low);
  }
}

void round_q6_k(const float* x, uint8_t* block) {
  float scales[16], multiples[16];
  for (int g = 0; g < 16; ++g) scales[g] = fit_scale(x + 16 * g, 16, -32.0F);
  const float d = round_scales(scales, 16, 128.0F, block + 208, multiples);
  uint8_t codes[kSuper];
  for (int g = 0; g < 16; ++g) {
    block[192 + g] = static_cast<uint8_t>(static_cast<int8_t>(multiples[g]));
    round_codes(x + 16 * g, 16, {d * multiples[g], 0.0F}, -32.0F, 31.0F, codes + 16 * g);
  }
  for (int half = 0; half < 2; ++half) {
    const uint8_t* q = codes + 128 * half;
    pack_nibbles(q, 64, block + 64 * half);
    uint8_t high[128];
    for (int i = 0; i < 128; ++i) high[i] = q[i] >> 4;
    pack_pairs(high, block + 128 + 32 * half);
  }
}

void round_q3_k(const float* x, uint8_t* block) {
  float scales[16], multiples[16];
  for (int g = 0; g < 16; ++g) scales[g] = fit_scale(x + 16 * g, 16, -4.0F);
  const float d = round_scales(scales, 16, 32.0F, block + 108, multiples);
  uint8_t codes[kSuper];
  std::memset(block, 0, 32);
  std::memset(block + 96, 0, 12);
  for (int g = 0; g < 16; ++g) {
    const int six_bits = static_cast<int>(multiples[g]) + 32;
    block[96 + g % 8] |= static_cast<uint8_t>((six_bits & 15) << g / 8 * 4);
    block[104 + g % 4] |= static_cast<uint8_t>(six_bits >> 4 << 2 * (g / 4));
    round_codes(x + 16 * g, 16, {d * multiples[g], 0.0F}, -4.0F, 3.0F, codes + 16 * g);
  }
  for (int i = 0; i < kSuper; ++i) block[i % 32] |= static_cast<uint8_t>(codes[i] >> 2 << i / 32);
  pack_pairs(codes, block + 32);
  pack_pairs(codes + 128, block + 64);
}

// w = |x| + the root of their mean square: large numbers count for more, small ones for something.
void weigh(const float* x, int n, float* w) {
  float squares = 0.0F;
  for (int i = 0; i < n; ++i) squares += x[i] * x[i];
  const float usual = std::sqrt(squares / static_cast<float>(n));
  for (int i = 0; i < n; ++i) w[i] = usual + std::fabs(x[i]);
}

void round_q4_k_or_q5_k(Format format, const float* x, uint8_t* block) {
  const float high = format == Format::Q5_K ? 31.0F : 15.0F;
  float scales[8], minimums[8], scale[8], minimum[8], w[kBlock];
  for (int g = 0; g < 8; ++g) {
    weigh(x + kBlock * g, kBlock, w);
    const Line line = fit_line(x + kBlock * g, w, kBlock, high, -1.0F, 20);
    scales[g] = line.scale;
    minimums[g] = line.minimum;
  }
  const float d = round_positive(scales, 8, 63.0F, block, scale);
  const float dmin = round_positive(minimums, 8, 63.0F, block + 2, minimum);
  uint8_t codes[kSuper];
  uint8_t* packed = block + 4;  // see `_six_bit_scales` of the reference
  std::memset(packed, 0, 12);
  for (int g = 0; g < 8; ++g) {
    const int s = static_cast<int>(scale[g]), m = static_cast<int>(minimum[g]);
    if (g < 4) {
      packed[g] |= static_cast<uint8_t>(s);
      packed[g + 4] |= static_cast<uint8_t>(m);
    } else {
      packed[g + 4] = static_cast<uint8_t>((s & 15) | (m & 15) << 4);
      packed[g - 4] |= static_cast<uint8_t>(s >> 4 << 6);
      packed[g] |= static_cast<uint8_t>(m >> 4 << 6);
    }
    round_codes(x + kBlock * g, kBlock, {d * scale[g], dmin * minimum[g]}, 0.0F, high, codes + kBlock * g);
  }
  uint8_t* low = block + 16;
  if (format == Format::Q5_K) {
    std::memset(low, 0, 32);
    for (int i = 0; i < kSuper; ++i) low[i % 32] |= static_cast<uint8_t>(codes[i] >> 4 << i / 32);
    low += 32;
  }
  for (int pair = 0; pair < 4; ++pair) pack_nibbles(codes + 64 * pair, 32, low + 32 * pair);
}

void round_q2_k(const float* x, uint8_t* block) {
  float scales[16], minimums[16], scale[16], minimum[16], w[16];
  for (int g = 0; g < 16; ++g) {
    weigh(x + 16 * g, 16, w);
    const Line line = fit_line(x + 16 * g, w, 16, 3.0F, -0.5F, 15);
    scales[g] = line.scale;
    minimums[g] = line.minimum;
  }
  const float d = round_positive(scales, 16, 15.0F, block + 80, scale);
  const float dmin = round_positive(minimums, 16, 15.0F, block + 82, minimum);
  uint8_t codes[kSuper];
  for (int g = 0; g < 16; ++g) {
    block[g] = static_cast<uint8_t>(static_cast<int>(scale[g]) | static_cast<int>(minimum[g]) << 4);
    round_codes(x + 16 * g, 16, {d * scale[g], dmin * minimum[g]}, 0.0F, 3.0F, codes + 16 * g);
  }
  pack_pairs(codes, block + 16);
  pack_pairs(codes + 128, block + 48);
}

void round_to_table(const float* x, float scale, uint8_t* p) {
  const float inverse = inverse_of(scale);
  uint8_t codes[kBlock];
  for (int i = 0; i < kBlock; ++i) codes[i] = static_cast<uint8_t>(nearest_in_table(x[i] * inverse));
  pack_nibbles(codes, 16, p);
}

void round_iq4_nl(const float* x, uint8_t* block) {
  round_to_table(x, write_half(fit_table_scale(x, kBlock), block), block + 2);
}

void round_iq4_xs(const float* x, uint8_t* block) {
  float scales[8], multiples[8];
  for (int g = 0; g < 8; ++g) scales[g] = fit_table_scale(x + kBlock * g, kBlock);
  const float d = round_scales(scales, 8, 32.0F, block, multiples);
  uint16_t high = 0;
  std::memset(block + 4, 0, 4);
  for (int g = 0; g < 8; ++g) {
    const int six_bits = static_cast<int>(multiples[g]) + 32;
    block[4 + g / 2] |= static_cast<uint8_t>((six_bits & 15) << g % 2 * 4);
    high |= static_cast<uint16_t>(six_bits >> 4 << 2 * g);
    round_to_table(x + kBlock * g, d * multiples[g], block + 8 + 16 * g);
  }
  std::memcpy(block + 2, &high, sizeof high);
}

void round_block(Format format, const float* x, uint8_t* block) {
  switch (format) {
    case Format::Q8_0: return round_q8_0(x, block);
    case Format::Q4_0:
    case Format::Q5_0: return round_symmetric(format, x, block);
    case Format::Q4_1:
    case Format::Q5_1: return round_with_minimum(format, x, block);
    case Format::Q2_K: return round_q2_k(x, block);
    case Format::Q3_K: return round_q3_k(x, block);
    case Format::Q4_K:
    case Format::Q5_K: return round_q4_k_or_q5_k(format, x, block);
    case Format::Q6_K: return round_q6_k(x, block);
    case Format::IQ4_NL: return round_iq4_nl(x, block);
    case Format::IQ4_XS: return round_iq4_xs(x, block);
    default: return;
  }
}

}  // namespace

bool can_round(Format format) { return !layout::is_float(format) && format != Format::MXFP4; }

void round_row(Format format, const float* x, int64_t in, uint8_t* row) {
  const int64_t width = block_width(format), bytes = row_bytes(format, width);
  for (int64_t block = 0; block < in / width; ++block) round_block(format, x + block * width, row + block * bytes);
}

}  // namespace outpace
