// Storage of a paged KV cache: where each layer's keys and values of a slot lie, and how they are encoded.
#pragma once

#include <cstdint>
#include <vector>

#include "matmul/matmul.h"

namespace outpace {

enum class KvFormat : uint8_t { F32, BF16, Int8 };

// Geometry, and the layout of a block: layers, in each of them heads, in each of them four arrays:
//   keys          f32 [K][lanes]   bf16 [K/2][lanes][2]   int8 [K][lanes]       slots side by side: a vector of slots
//   values        f32 [slots][Kp]  bf16 [slots/2][Kp][2]  int8 [slots][Kp]      channels side by side
//   key scales    int8 only: f32 [K/group][lanes]
//   value scales  int8 only: f32 [slots][K/group]
// lanes: slots of a block rounded up to 16, Kp: the head's width rounded up to 16. The pairs of bf16 let one 32-bit
// lane be widened by a shift or a mask. Rounding is that of outpace/ops/reference/storage.py.
struct KvLayout {
  KvFormat format;
  int64_t num_layers, num_kv_heads, width, block_size, group;  // group: channels that share an int8 scale
  int64_t lanes = 0, padded_width = 0;
  int64_t values = 0, key_scales = 0, value_scales = 0;  // byte offsets from a head's keys
  int64_t head_bytes = 0, layer_bytes = 0, block_bytes = 0;
};

// Throws std::invalid_argument for sizes that are not positive or overflow, an odd width, a group that does not divide
// it.
KvLayout make_kv_layout(KvFormat format, int64_t num_layers, int64_t num_kv_heads, int64_t width, int64_t block_size,
                        int64_t group);

// Blocks in slabs: growing adds a slab, so nothing is copied and block addresses stay. Memory is zero until written.
class KvStore {
 public:
  KvStore(const KvLayout& layout, int64_t num_blocks) : layout_(layout) { grow(num_blocks); }
  KvStore(const KvStore&) = delete;
  KvStore& operator=(const KvStore&) = delete;

  const KvLayout& layout() const { return layout_; }
  int64_t num_blocks() const { return static_cast<int64_t>(blocks_.size()); }
  uint8_t* const* blocks() const { return blocks_.data(); }

  // Adds blocks up to `num_blocks`; never shrinks.
  void grow(int64_t num_blocks);

  // Copies a slot of layers [begin, end) to another slot.
  void move(int64_t source, int64_t target, int64_t begin, int64_t end);

 private:
  KvLayout layout_;
  std::vector<AlignedBuffer> slabs_;
  std::vector<uint8_t*> blocks_;
};

// Encodes one head's key and value [K] of one slot; `head` is the head's part of the block, `slot` the offset in it.
void store_slot(const KvLayout& layout, uint8_t* head, int64_t slot, const float* key, const float* value);

}  // namespace outpace
