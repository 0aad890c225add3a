// The operations on each row by itself: RMS norm, of a row or of each head, bias and the gated activation.

#include <algorithm>
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

// The adapter's own weight of norm `index`; empty if it has none.
template <class W> std::vector<float> weight_of(const Segment& segment, int64_t index, int64_t width) {
    const int64_t offset = segment.extras ? segment.extras[NORMS_AT + index] : -1;
    const W* own = static_cast<const W*>(segment.image) + offset;
    std::vector<float> weight(offset < 0 ? 0 : static_cast<size_t>(width));
    for (size_t i = 0; i < weight.size(); ++i) weight[i] = to_float(own[i]);
    return weight;
}

// Calls f(segment, weight) for each segment whose adapter has a weight of its own for norm `index`.
template <class F>
void for_own_norms(const Segment* segments, int64_t count, bool is_bf16, int64_t index, int64_t width, F&& f) {
    for (int64_t s = 0; s < count; ++s) {
        const Segment& own = segments[s];
        const auto weight = is_bf16 ? weight_of<bf16>(own, index, width) : weight_of<float>(own, index, width);
        if (!weight.empty()) f(own, weight.data());
    }
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
    if (!lora.has_extras) return;
    for_own_norms(segments, count, lora.is_bf16, index, x.width, [&](const Segment& segment, const float* weight) {
        for_rows(pool, segment.stop - segment.start, x.width, [&](int64_t r) {
            norm_row(x.row(segment.start + r), weight, y.row(segment.start + r), x.width, float(eps));
        });
    });
}

void ml::keep_hidden(
    Pool* pool, Rows residual, Rows delta, const float* weight, int64_t index, double eps, const StepInput& step) {
    const int64_t *rows = step.hidden_rows, *end = rows + step.num_hidden, width = residual.width;
    auto keep = [&](const int64_t* first, const int64_t* stop, const float* own) {
        for_rows(pool, stop - first, width, [&](int64_t r) {
            const float *x = residual.row(first[r]), *more = delta.row(first[r]);
            float* kept = step.hidden + (first - rows + r) * width;
            for (int64_t i = 0; i < width; ++i) kept[i] = x[i] + more[i];
            norm_row(kept, own, kept, width, float(eps));
        });
    };
    keep(rows, end, weight);
    const LoraBatch& lora = step.lora;
    if (!step.num_hidden || !lora.has_extras) return;
    for_own_norms(lora.segments, lora.num_segments, lora.is_bf16, index, width, [&](const Segment& s, const float* own) {
        keep(std::lower_bound(rows, end, s.start), std::lower_bound(rows, end, s.stop), own);
    });
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
