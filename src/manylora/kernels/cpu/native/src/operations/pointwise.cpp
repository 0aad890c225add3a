// The operations on each row by itself: RMS norm, of a row or of each head, bias and the gated activation.

#include <cmath>
#include <vector>

#include "operations.h"
#include "pool.h"
#include "tile.h"

namespace ml {
namespace {

constexpr int64_t GRAIN = 1 << 15;  // elements a chunk; below that, waking a worker costs more than it saves

template <class F> void for_rows(Pool* pool, int64_t rows, int64_t width, F&& f) {
    int64_t chunks = chunks_for(rows, rows * width, GRAIN, pool_threads(pool));
    parallel(pool, chunks, [&](int64_t chunk) {
        for (int64_t r = chunk_start(rows, chunks, chunk); r < chunk_start(rows, chunks, chunk + 1); ++r) f(r);
    });
}

// Four sums of sixteen lanes side by side, then one fixed tree.
float sum_of_squares(const float* x, int64_t width) {
    V16 sums[4] = {zero(), zero(), zero(), zero()};
    int64_t i = 0;
    for (; i + 4 * LANES <= width; i += 4 * LANES)
        for (int j = 0; j < 4; ++j) {
            V16 v = load(x + i + j * LANES);
            sums[j] = fma(v, v, sums[j]);
        }
    for (int j = 0; i < width; i += LANES, ++j) {
        V16 v = i + LANES <= width ? load(x + i) : load_first(x + i, int(width - i));
        sums[j] = fma(v, v, sums[j]);
    }
    return sum_lanes(add(add(sums[0], sums[2]), add(sums[1], sums[3])));
}

void norm_row(const float* x, const float* weight, float* y, int64_t width, float eps) {
    V16 scale = set1(1.0f / std::sqrt(sum_of_squares(x, width) / float(width) + eps));
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES) store(y + i, mul(mul(load(x + i), scale), load(weight + i)));
    if (int rest = int(width - i))
        store_first(y + i, mul(mul(load_first(x + i, rest), scale), load_first(weight + i, rest)), rest);
}

// Computes the rows of one segment again, with the adapter's own weight of norm `index`.
template <class W> void own_norm(Pool* pool, Rows x, Rows y, int64_t index, float eps, const Segment& segment) {
    const int64_t offset = segment.extras[NORMS_AT + index];
    if (offset < 0) return;
    const W* own = static_cast<const W*>(segment.image) + offset;
    std::vector<float> weight(static_cast<size_t>(x.width));
    for (int64_t i = 0; i < x.width; ++i) weight[size_t(i)] = to_float(own[i]);
    const float* values = weight.data();
    for_rows(pool, segment.stop - segment.start, x.width, [&](int64_t r) {
        norm_row(x.row(segment.start + r), values, y.row(segment.start + r), x.width, eps);
    });
}

V16 gate(V16 g, V16 u) {
    V16 denominator = add(set1(1.0f), exp(sub(zero(), g)));
    return mul(div(g, denominator), u);
}

}  // namespace
}  // namespace ml

void ml::norm(Pool* pool, Rows x, const float* weight, double eps, Rows y) {
    for_rows(pool, x.count, x.width, [&](int64_t r) { norm_row(x.row(r), weight, y.row(r), x.width, float(eps)); });
}

void ml::add_norm(Pool* pool, Rows residual, Rows delta, const float* weight, double eps, Rows y) {
    for_rows(pool, y.count, y.width, [&](int64_t r) {
        float* row = residual.row(r);
        const float* more = delta.row(r);
        for (int64_t i = 0; i < y.width; ++i) row[i] += more[i];
        norm_row(row, weight, y.row(r), y.width, float(eps));
    });
}

// y is the norm of x with the base's weight. The rows whose adapter has a weight of its own are computed again.
void ml::adapt_norm(
    Pool* pool, Rows y, Rows x, const LoraBatch& lora, int64_t index, double eps, bool is_sampled) {
    const Segment* segments = is_sampled ? lora.sampled : lora.segments;
    const int64_t count = is_sampled ? lora.num_sampled : lora.num_segments;
    for (int64_t s = 0; lora.has_extras && s < count; ++s) {
        if (!segments[s].extras) continue;
        if (lora.is_bf16) own_norm<bf16>(pool, x, y, index, float(eps), segments[s]);
        else own_norm<float>(pool, x, y, index, float(eps), segments[s]);
    }
}

void ml::add_bias(Pool* pool, Rows y, const float* bias) {
    for_rows(pool, y.count, y.width, [&](int64_t r) {
        float* row = y.row(r);
        for (int64_t i = 0; i < y.width; ++i) row[i] += bias[i];
    });
}

void ml::norm_heads(
    Pool* pool, Rows y, const float* weight, int64_t column, int64_t heads, int64_t head_dim, double eps) {
    for_rows(pool, y.count, heads * head_dim, [&](int64_t r) {
        float* head = y.row(r) + column;
        for (int64_t h = 0; h < heads; ++h, head += head_dim) norm_row(head, weight, head, head_dim, float(eps));
    });
}

void ml::gated_silu(Pool* pool, Rows gate_up, Rows y) {
    const int64_t width = y.width;
    for_rows(pool, y.count, 4 * width, [&](int64_t r) {
        const float *g = gate_up.row(r), *u = g + width;
        float* to = y.row(r);
        int64_t i = 0;
        for (; i + LANES <= width; i += LANES) store(to + i, gate(load(g + i), load(u + i)));
        if (int rest = int(width - i)) store_first(to + i, gate(load_first(g + i, rest), load_first(u + i, rest)), rest);
    });
}
