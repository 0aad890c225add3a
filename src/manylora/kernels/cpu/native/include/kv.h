// The paged keys and values, and the place of each in a block.
//
// Layout, for each layer, block and kv head, in bfloat16, a line of the form for each step of a product (`kv_forms.h`):
//                     one number a sum               two numbers a sum
//   keys    (slots / 16,  head_dim, 16)       (slots / 16,  head_dim / 2, 16, 2)
//   values  (head_dim / 16,  slots, 16)       (head_dim / 16,  slots / 2, 16, 2)
// Sixteen positions lie side by side, so that a score panel is a product over head_dim; and sixteen dimensions, so that an
// output panel is a product over positions. slots and head_dim are rounded up to sixteen where they are a panel's sums, and
// the slots of values to two.
#pragma once

#include "layouts.h"
#include "simd.h"

namespace ml {

struct Kv : KvLayout {
    int64_t groups() const { return (block_size + LANES - 1) / LANES; }
    int64_t dim_panels() const { return (head_dim + LANES - 1) / LANES; }
    int64_t value_panel() const { return (block_size + 1) / 2 * 2 * LANES; }
    int64_t key_elements() const { return groups() * LANES * head_dim; }
    int64_t value_elements() const { return dim_panels() * value_panel(); }
    bf16* key_block(int64_t layer, int64_t block, int64_t head) const {
        return keys + ((layer * num_blocks + block) * kv_heads + head) * key_elements();
    }
    bf16* value_block(int64_t layer, int64_t block, int64_t head) const {
        return values + ((layer * num_blocks + block) * kv_heads + head) * value_elements();
    }
};

}  // namespace ml
