// What is done to each row by itself: RMS norm and the gated activation.

#include <cmath>
#include <vector>

#include "adapter.h"
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

// The rows of one segment again, with the weight its adapter has for norm `index`.
template <class W>
void own_norm(Pool* pool, const float* x, float* y, int64_t width, float eps, int64_t index, const Segment& segment) {
    const int64_t offset = segment.extras[NORMS_AT + index];
    if (offset < 0) return;
    const W* own = static_cast<const W*>(segment.image) + offset;
    std::vector<float> weight(static_cast<size_t>(width));
    for (int64_t i = 0; i < width; ++i) weight[size_t(i)] = to_float(own[i]);
    const float* values = weight.data();
    for_rows(pool, segment.stop - segment.start, width, [&](int64_t r) {
        const int64_t at = (segment.start + r) * width;
        norm_row(x + at, values, y + at, width, eps);
    });
}

V16 gate(V16 g, V16 u) {
    V16 denominator = add(set1(1.0f), exp(sub(zero(), g)));
    return mul(div(g, denominator), u);
}

}  // namespace
}  // namespace ml

extern "C" {

void ml_norm(ml::Pool* pool, const float* x, const float* weight, float* y, int64_t rows, int64_t width, float eps) {
    using namespace ml;
    for_rows(pool, rows, width, [&](int64_t r) { norm_row(x + r * width, weight, y + r * width, width, eps); });
}

// residual += delta in place, then the norm of the residual.
void ml_add_norm(
    ml::Pool* pool, float* residual, const float* delta, const float* weight, float* y, int64_t rows, int64_t width,
    float eps) {
    using namespace ml;
    for_rows(pool, rows, width, [&](int64_t r) {
        float* row = residual + r * width;
        const float* more = delta + r * width;
        for (int64_t i = 0; i < width; ++i) row[i] += more[i];
        norm_row(row, weight, y + r * width, width, eps);
    });
}

// y (rows, width) is the norm of x with the base's weight; rows whose adapter has a weight of its own are done again.
void ml_adapt_norm(
    ml::Pool* pool, const float* x, float* y, int64_t width, float eps, int64_t index, const int64_t* segments,
    int64_t num_segments, int64_t is_bf16) {
    using namespace ml;
    const auto* all = reinterpret_cast<const Segment*>(segments);
    for (int64_t s = 0; s < num_segments; ++s) {
        if (!all[s].extras) continue;
        if (is_bf16) own_norm<bf16>(pool, x, y, width, eps, index, all[s]);
        else own_norm<float>(pool, x, y, width, eps, index, all[s]);
    }
}

// gate_up (rows, 2 * width) -> y (rows, width) = silu(gate) * up.
void ml_gated_silu(ml::Pool* pool, const float* gate_up, float* y, int64_t rows, int64_t width) {
    using namespace ml;
    for_rows(pool, rows, 4 * width, [&](int64_t r) {
        const float *g = gate_up + r * 2 * width, *u = g + width;
        float* to = y + r * width;
        int64_t i = 0;
        for (; i + LANES <= width; i += LANES) store(to + i, gate(load(g + i), load(u + i)));
        if (int rest = int(width - i)) store_first(to + i, gate(load_first(g + i, rest), load_first(u + i, rest)), rest);
    });
}

}  // extern "C"
