// An adapter's changes of the embedding and of the output head: rows of its own, a gain, a LoRA, a bias.
//
// Such adapters are few, so the code favours clarity. The product of the head with an adapter's own rows takes the time and
// is spread over the pool. The order of accumulation of a value does not depend on the rows beside it.

#include <algorithm>
#include <vector>

#include "operations.h"
#include "pool.h"
#include "simd.h"

namespace ml {
namespace {

constexpr int64_t ROWS_A_PIECE = 256;  // own rows of the head in one piece of work

template <class W> float dot(const float* x, const W* row, int64_t width) {
    V16 sum = zero();
    int64_t k = 0;
    for (; k + LANES <= width; k += LANES) sum = fma(load(x + k), load_plain<W>(row + k), sum);
    if (int rest = int(width - k)) sum = fma(load_first(x + k, rest), load_first<W>(row + k, rest), sum);
    return sum_lanes(sum);
}

// An adapter's own rows: token ids, ascending, and a row for each.
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

template <class W> void adapt_rows(Pool* pool, const int64_t* ids, Rows y, const Segment& segment) {
    parallel(pool, segment.stop - segment.start, [&](int64_t index) {
        const int64_t row = segment.start + index;
        adapt_embedding_row<W>(segment, ids[row], y.row(row), y.width);
    });
}

template <class W> void own_logits(Pool* pool, Rows logits, Rows x, const Segment& segment) {
    OwnRows<W> own(segment, segment.extras + HEAD_ROWS);
    const int64_t pieces = (own.count + ROWS_A_PIECE - 1) / ROWS_A_PIECE;
    parallel(pool, pieces, [&](int64_t piece) {
        for (int64_t i = piece * ROWS_A_PIECE; i < std::min(own.count, (piece + 1) * ROWS_A_PIECE); ++i)
            for (int64_t row = segment.start; row < segment.stop; ++row)
                logits.row(row)[own.ids[i]] = dot(x.row(row), own.rows + i * x.width, x.width);
    });
}

}  // namespace
}  // namespace ml

// y is the base's embedding of the step's `token_ids`; the adapters read `row_ids`.
void ml::adapt_embedding(Pool* pool, Rows y, const StepInput& step) {
    for (int64_t s = 0; step.lora.has_extras && s < step.lora.num_segments; ++s) {
        const Segment& segment = step.lora.segments[s];
        if (!segment.extras) continue;
        if (step.lora.is_bf16) adapt_rows<bf16>(pool, step.row_ids, y, segment);
        else adapt_rows<float>(pool, step.row_ids, y, segment);
    }
}

// A segment's adapter has the first `extras[VOCABULARY]` columns of the logits.
void ml::adapt_logits(Pool* pool, Rows logits, Rows x, const LoraBatch& lora) {
    for (int64_t s = 0; s < lora.num_sampled; ++s) {
        const Segment& segment = lora.sampled[s];
        if (!segment.extras) continue;
        if (lora.is_bf16) own_logits<bf16>(pool, logits, x, segment);
        else own_logits<float>(pool, logits, x, segment);
        // The head's LoRA is that of a single projection whose table begins the extras.
        Segment head = segment;
        head.table = segment.extras + HEAD;
        head.vectors = segment.extras + HEAD_VECTORS;
        const LoraTarget target{0, 0, segment.extras[VOCABULARY]};
        add_lora(pool, logits, x, LoraBatch{&head, 1, nullptr, 0, lora.is_bf16, 1}, 0, LoraTargets{&target, 1});
    }
}
