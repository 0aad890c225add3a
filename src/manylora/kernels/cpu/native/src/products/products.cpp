// The operations that read packed weights: embedding, linear layers, logits.

#include "products.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "operations.h"

namespace ml {
namespace {

void multiply(Pool* pool, const float* x, PackedWeight weight, float* y, int64_t rows) {
    const RowGroup all{weight.data, 0, rows};
    multiply(pool, weight.format, x, {&all, 1, rows}, y, weight.inputs, weight.outputs);
}

// Rows of logits that are wider than the base's vocabulary: -inf for the tokens that it lacks, until an adapter that has
// them writes its own.
void widen(const float* narrow, int64_t vocab, Rows wide) {
    for (int64_t r = 0; r < wide.count; ++r) {
        std::memcpy(wide.row(r), narrow + r * vocab, size_t(vocab) * 4);
        std::fill(wide.row(r) + vocab, wide.row(r) + wide.width, -INFINITY);
    }
}

}  // namespace
}  // namespace ml

void ml::multiply(
    Pool* pool, WeightFormat format, const float* x, RowGroups groups, float* y, int64_t in, int64_t out) {
    switch (format) {
        case WeightFormat::bf16: return linear_bf16(pool, x, groups, y, in, out);
        case WeightFormat::bf16_pairs: return linear_bf16_pairs(pool, x, groups, y, in, out);
        case WeightFormat::int8: return linear_int8(pool, x, groups, y, in, out);
        case WeightFormat::int4: return linear_int4(pool, x, groups, y, in, out);
    }
}

bool ml::embed(Pool* pool, TokenIds token_ids, PackedWeight table, Rows y) {
    const int64_t *ids = token_ids.first, in = table.inputs, out = table.outputs;
    for (int64_t i = 0; i < y.count; ++i)
        if (ids[i] < 0 || ids[i] >= out) return false;
    switch (table.format) {
        case WeightFormat::bf16: embed_bf16(pool, ids, table.data, y.data, y.count, in, out); break;
        case WeightFormat::bf16_pairs: embed_bf16_pairs(pool, ids, table.data, y.data, y.count, in, out); break;
        case WeightFormat::int8: embed_int8(pool, ids, table.data, y.data, y.count, in, out); break;
        case WeightFormat::int4: embed_int4(pool, ids, table.data, y.data, y.count, in, out); break;
    }
    return true;
}

void ml::linear(Pool* pool, Rows x, PackedWeight weight, Rows y) { multiply(pool, x.data, weight, y.data, x.count); }

void ml::logits(Pool* pool, Rows x, PackedWeight head, Rows y) {
    if (y.width == head.outputs) return multiply(pool, x.data, head, y.data, x.count);
    std::vector<float> narrow(size_t(x.count * head.outputs));
    multiply(pool, x.data, head, narrow.data(), x.count);
    widen(narrow.data(), head.outputs, y);
}

void ml::take_rows(Pool*, Rows x, RowIndices rows, Rows y) {
    for (int64_t i = 0; i < y.count; ++i) std::memcpy(y.row(i), x.row(rows.first[i]), size_t(y.width) * 4);
}
