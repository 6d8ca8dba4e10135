#include "kv.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <stdexcept>

namespace outpace {
namespace {

constexpr int64_t kPad = 16;  // the widest vector, in floats

int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// To the nearest upper half of a float's bits; a tie goes to the one whose last bit is 0.
uint16_t to_bf16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

// Writes x [n] as int8 with a scale per group; number i goes to to(i), the scale of group g to scale_to(g).
template <class To, class ScaleTo>
void encode_int8(const float* x, int64_t n, int64_t group, To to, ScaleTo scale_to) {
  for (int64_t first = 0; first < n; first += group) {
    float largest = 0;
    for (int64_t i = 0; i < group; ++i) largest = std::max(largest, std::fabs(x[first + i]));
    const float scale = largest / 127.0f;
    const float divisor = scale == 0 ? 1.0f : scale;
    *scale_to(first / group) = scale;
    for (int64_t i = first; i < first + group; ++i) {
      // Adding 1.5 * 2^23 rounds to the nearest integer, ties to even. Not-a-number has no int8: it becomes 0.
      const float rounded = (x[i] / divisor + 12582912.0f) - 12582912.0f;
      *to(i) = std::fabs(rounded) <= 127.0f ? static_cast<int8_t>(rounded) : int8_t{0};
    }
  }
}

// Calls each(pointer offset, bytes) for all numbers of a head's slot, `slot` being its offset in the block.
template <class Each>
void for_numbers(const KvLayout& l, int64_t slot, Each each) {
  const int64_t groups = l.width / l.group;
  switch (l.format) {
    case KvFormat::F32:
      for (int64_t c = 0; c < l.width; ++c) each((c * l.lanes + slot) * 4, 4);
      each(l.values + slot * l.padded_width * 4, l.width * 4);
      break;
    case KvFormat::BF16:
      for (int64_t c = 0; c < l.width; c += 2) each((c * l.lanes + slot * 2) * 2, 4);
      for (int64_t c = 0; c < l.width; ++c) each(l.values + ((slot / 2 * l.padded_width + c) * 2 + slot % 2) * 2, 2);
      break;
    case KvFormat::Int8:
      for (int64_t c = 0; c < l.width; ++c) each(c * l.lanes + slot, 1);
      for (int64_t g = 0; g < groups; ++g) each(l.key_scales + (g * l.lanes + slot) * 4, 4);
      each(l.values + slot * l.padded_width, l.width);
      each(l.value_scales + slot * groups * 4, groups * 4);
      break;
  }
}

}  // namespace

KvLayout make_kv_layout(KvFormat format, int64_t num_layers, int64_t num_kv_heads, int64_t width, int64_t block_size,
                        int64_t group) {
  for (const int64_t size : {num_layers, num_kv_heads, width, block_size, group}) {
    if (size < 1 || size > (1 << 20)) throw std::invalid_argument("a KV cache's sizes must be in [1, 2^20]");
  }
  if (width % 2 != 0) throw std::invalid_argument("the head width must be even: rotary embedding turns pairs");
  if (width % group != 0) throw std::invalid_argument("the scale group must divide the head width");
  KvLayout l{format, num_layers, num_kv_heads, width, block_size, group};
  l.lanes = round_up(block_size, kPad);
  l.padded_width = round_up(width, kPad);
  const int64_t number = format == KvFormat::F32 ? 4 : format == KvFormat::BF16 ? 2 : 1;
  const int64_t scales = format == KvFormat::Int8 ? width / group * l.lanes * 4 : 0;
  l.values = round_up(width * l.lanes * number, 64);
  l.key_scales = l.values + round_up(l.lanes * l.padded_width * number, 64);
  l.value_scales = l.key_scales + scales;
  l.head_bytes = round_up(l.value_scales + scales, 64);
  if (__builtin_mul_overflow(num_kv_heads, l.head_bytes, &l.layer_bytes) ||
      __builtin_mul_overflow(num_layers, l.layer_bytes, &l.block_bytes) || l.block_bytes > (int64_t{1} << 40)) {
    throw std::invalid_argument("a KV cache block of this size does not fit any memory");
  }
  return l;
}

void KvStore::grow(int64_t num_blocks) {
  const int64_t added = num_blocks - this->num_blocks();
  if (added < 0) throw std::invalid_argument("a KV cache never shrinks");
  if (added == 0) return;
  int64_t bytes;
  if (__builtin_mul_overflow(added, layout_.block_bytes, &bytes)) throw std::bad_alloc();
  blocks_.reserve(num_blocks);
  slabs_.push_back(AlignedBuffer::in_huge_pages(static_cast<size_t>(bytes)));
  for (int64_t i = 0; i < added; ++i) blocks_.push_back(slabs_.back().data() + i * layout_.block_bytes);
}

void KvStore::move(int64_t source, int64_t target, int64_t begin, int64_t end) {
  // The offsets of both slots' numbers run in step, so the target's are collected first.
  std::vector<int64_t> places;
  for_numbers(layout_, target % layout_.block_size, [&](int64_t offset, int64_t) { places.push_back(offset); });
  const uint8_t* from = blocks_[source / layout_.block_size];
  uint8_t* to = blocks_[target / layout_.block_size];
  for (int64_t part = begin * layout_.num_kv_heads; part < end * layout_.num_kv_heads; ++part) {
    const int64_t head = part * layout_.head_bytes;
    auto place = places.begin();
    for_numbers(layout_, source % layout_.block_size,
                [&](int64_t offset, int64_t bytes) { std::memcpy(to + head + *place++, from + head + offset, bytes); });
  }
}

void store_slot(const KvLayout& l, uint8_t* head, int64_t slot, const float* key, const float* value) {
  switch (l.format) {
    case KvFormat::F32: {
      float* keys = reinterpret_cast<float*>(head);
      for (int64_t c = 0; c < l.width; ++c) keys[c * l.lanes + slot] = key[c];
      std::memcpy(head + l.values + slot * l.padded_width * 4, value, l.width * 4);
      break;
    }
    case KvFormat::BF16: {
      auto* keys = reinterpret_cast<uint32_t*>(head) + slot;
      auto* values = reinterpret_cast<uint16_t*>(head + l.values) + slot / 2 * l.padded_width * 2 + slot % 2;
      for (int64_t c = 0; c < l.width; c += 2) {
        keys[c / 2 * l.lanes] = to_bf16(key[c]) | static_cast<uint32_t>(to_bf16(key[c + 1])) << 16;
      }
      for (int64_t c = 0; c < l.width; ++c) values[c * 2] = to_bf16(value[c]);
      break;
    }
    case KvFormat::Int8: {
      auto* keys = reinterpret_cast<int8_t*>(head) + slot;
      auto* key_scales = reinterpret_cast<float*>(head + l.key_scales) + slot;
      auto* values = reinterpret_cast<int8_t*>(head + l.values) + slot * l.padded_width;
      auto* value_scales = reinterpret_cast<float*>(head + l.value_scales) + slot * (l.width / l.group);
      encode_int8(
          key, l.width, l.group, [&](int64_t c) { return keys + c * l.lanes; },
          [&](int64_t g) { return key_scales + g * l.lanes; });
      encode_int8(
          value, l.width, l.group, [&](int64_t c) { return values + c; }, [&](int64_t g) { return value_scales + g; });
      break;
    }
  }
}

}  // namespace outpace
