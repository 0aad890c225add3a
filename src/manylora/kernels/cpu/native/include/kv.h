// The paged keys and values, and the place of each in a block.
//
// Layout, for each layer, block and kv head, in bfloat16:
//   keys    (slots / 16, head_dim, 16)   sixteen positions side by side: a score panel is a product over head_dim
//   values  (head_dim / 16, slots, 16)   sixteen dimensions side by side: an output panel is a product over positions
// with slots and head_dim rounded up to sixteen where they are a panel's lanes.
#pragma once

#include "layouts.h"
#include "simd.h"

namespace ml {

struct Kv : KvLayout {
    int64_t groups() const { return (block_size + LANES - 1) / LANES; }
    int64_t dim_panels() const { return (head_dim + LANES - 1) / LANES; }
    int64_t key_elements() const { return groups() * LANES * head_dim; }
    int64_t value_elements() const { return dim_panels() * LANES * block_size; }
    bf16* key_block(int64_t layer, int64_t block, int64_t head) const {
        return keys + ((layer * num_blocks + block) * kv_heads + head) * key_elements();
    }
    bf16* value_block(int64_t layer, int64_t block, int64_t head) const {
        return values + ((layer * num_blocks + block) * kv_heads + head) * value_elements();
    }
};

}  // namespace ml
