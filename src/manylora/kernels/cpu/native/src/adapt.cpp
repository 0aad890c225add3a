// What an adapter changes of the embedding and of the output head: rows of its own, a gain, a LoRA, a bias.
//
// Such adapters are few, so this is written for clarity: what costs time is the product of the head with whole rows that
// an adapter brings, which is spread over the pool. Each value has one accumulation order, whatever rows stand beside it.

#include <algorithm>
#include <vector>

#include "adapter.h"
#include "operations.h"
#include "pool.h"
#include "simd.h"

namespace ml {
namespace {

constexpr int64_t ROWS_A_PIECE = 256;  // own rows of the head that one piece multiplies with

template <class W> float dot(const float* x, const W* row, int64_t width) {
    V16 sum = zero();
    int64_t k = 0;
    for (; k + LANES <= width; k += LANES) sum = fma(load(x + k), load_plain<W>(row + k), sum);
    if (int rest = int(width - k)) sum = fma(load_first(x + k, rest), load_first<W>(row + k, rest), sum);
    return sum_lanes(sum);
}

// The rows an adapter has of its own: token ids, ascending, and a row for each.
template <class W> struct OwnRows {
    const int32_t* ids;
    const W* rows;
    int64_t count;

    OwnRows(const Segment& segment, const int64_t* entry)
        : ids(reinterpret_cast<const int32_t*>(static_cast<const W*>(segment.image) + entry[0])),
          rows(static_cast<const W*>(segment.image) + entry[1]),
          count(entry[2]) {}

    const W* find(int64_t id, int64_t width) const {
        const int32_t* at = std::lower_bound(ids, ids + count, int32_t(id));
        return at != ids + count && *at == id ? rows + (at - ids) * width : nullptr;
    }
};

template <class W> void adapt_embedding_row(const Segment& segment, int64_t id, float* y, int64_t width) {
    const W* image = static_cast<const W*>(segment.image);
    const int64_t *extras = segment.extras, *lora = extras + EMBED;
    if (const W* own = OwnRows<W>(segment, extras + EMBED_ROWS).find(id, width))
        for (int64_t i = 0; i < width; ++i) y[i] = to_float(own[i]);
    if (extras[EMBED_VECTORS + 1] >= 0) {
        const W* gain = image + extras[EMBED_VECTORS + 1];
        for (int64_t i = 0; i < width; ++i) y[i] += y[i] * to_float(gain[i]);
    }
    const int64_t rank = lora[2];
    const W *a = image + lora[0] + id * rank, *b = image + lora[1];
    for (int64_t i = 0; rank > 0 && i < width; ++i) {
        float sum = 0;
        for (int64_t r = 0; r < rank; ++r) sum = __builtin_fmaf(to_float(a[r]), to_float(b[r * width + i]), sum);
        y[i] += sum;
    }
}

template <class W>
void adapt_embedding(Pool* pool, const int64_t* ids, float* y, int64_t width, const Segment& segment) {
    parallel(pool, segment.stop - segment.start, [&](int64_t index) {
        const int64_t row = segment.start + index;
        adapt_embedding_row<W>(segment, ids[row], y + row * width, width);
    });
}

template <class W>
void own_logits(Pool* pool, float* logits, int64_t stride, const float* x, int64_t width, const Segment& segment) {
    OwnRows<W> own(segment, segment.extras + HEAD_ROWS);
    const int64_t pieces = (own.count + ROWS_A_PIECE - 1) / ROWS_A_PIECE;
    parallel(pool, pieces, [&](int64_t piece) {
        for (int64_t i = piece * ROWS_A_PIECE; i < std::min(own.count, (piece + 1) * ROWS_A_PIECE); ++i)
            for (int64_t row = segment.start; row < segment.stop; ++row)
                logits[row * stride + own.ids[i]] = dot(x + row * width, own.rows + i * width, width);
    });
}

}  // namespace
}  // namespace ml

extern "C" {

// y (rows, width) is what the base's embedding gave for `ids`, of which one that the base does not know got any row.
void ml_adapt_embedding(
    ml::Pool* pool, const int64_t* ids, float* y, int64_t width, const int64_t* segments, int64_t num_segments,
    int64_t is_bf16) {
    using namespace ml;
    const auto* all = reinterpret_cast<const Segment*>(segments);
    for (int64_t s = 0; s < num_segments; ++s) {
        if (!all[s].extras) continue;
        if (is_bf16) adapt_embedding<bf16>(pool, ids, y, width, all[s]);
        else adapt_embedding<float>(pool, ids, y, width, all[s]);
    }
}

// logits (rows, stride), of which a segment's adapter has the first `extras[VOCABULARY]` columns; x (rows, width).
void ml_adapt_logits(
    ml::Pool* pool, float* logits, int64_t stride, const float* x, int64_t width, const int64_t* segments,
    int64_t num_segments, int64_t is_bf16) {
    using namespace ml;
    const auto* all = reinterpret_cast<const Segment*>(segments);
    for (int64_t s = 0; s < num_segments; ++s) {
        const Segment& segment = all[s];
        if (!segment.extras) continue;
        if (is_bf16) own_logits<bf16>(pool, logits, stride, x, width, segment);
        else own_logits<float>(pool, logits, stride, x, width, segment);
        // The head's LoRA is that of a single projection whose table begins the extras.
        Segment head = segment;
        head.table = segment.extras + HEAD;
        head.vectors = segment.extras + HEAD_VECTORS;
        const int64_t target[3] = {0, 0, segment.extras[VOCABULARY]};
        ml_add_lora(pool, logits, stride, x, width, width, reinterpret_cast<const int64_t*>(&head), 1, target, 1, 0,
                    is_bf16);
    }
}

}  // extern "C"
