// A whole forward pass in one call: the operations that `capture.py` recorded, run one after the other.
//
// A step of a small base is some three hundred operations of tens of microseconds each; calling every one from Python
// costs a tenth of a step for one row. The operations are those Python calls one by one, so the bits are the same.

#include <cmath>
#include <cstring>
#include <vector>

#include "operations.h"
#include "pool.h"
#include "timed.h"

namespace ml {
namespace {

// The order of `OPERATIONS` in program.py.
enum Kind : int64_t { EMBED, NORM, ADD_NORM, LINEAR, LOGITS, ROTATE, ATTEND, SILU, LORA, TAKE, ADAPT_EMBEDDING, ADAPT_NORM, ADAPT_LOGITS };

using Linear = void (*)(Pool*, const float*, const void*, float*, int64_t, int64_t, int64_t);
using Embed = int64_t (*)(Pool*, const int64_t*, const void*, float*, int64_t, int64_t, int64_t);

// Mirrored by `OperationLayout` in program.py. x, y and z are columns of the step's scratch: a buffer of some width
// begins at `scratch + column * rows`. What the other fields mean depends on the kind, as `run_one` shows.
struct Operation {
    int64_t kind, is_sampled, x, y, z, in, out, layer, count;
    double eps;
    const void *weight, *more, *function;
};

// Mirrored by `StepLayout` in program.py.
struct Step {
    int64_t rows, sampled;
    const int64_t *token_ids, *row_ids, *logit_rows;
    const int32_t* positions;
    const int64_t* slots;
    const int32_t *row_sequence, *block_tables;
    int64_t max_blocks;
    const int64_t* segments;
    int64_t num_segments, is_bf16;
    const int64_t* sampled_segments;  // in terms of the rows of logits, those with extras alone
    int64_t num_sampled_segments, has_extras, logit_width;
    const Kv* kv;
    float *scratch, *logits;
};

// Logits that are wider than the base's vocabulary: nothing, until an adapter says more, of the tokens it does not have.
void widen(const float* narrow, int64_t rows, int64_t vocab, float* wide, int64_t width) {
    for (int64_t r = 0; r < rows; ++r) {
        std::memcpy(wide + r * width, narrow + r * vocab, size_t(vocab) * 4);
        for (int64_t i = vocab; i < width; ++i) wide[r * width + i] = -INFINITY;
    }
}

void run_logits(Pool* pool, Linear linear, const void* packed, const float* x, int64_t in, int64_t vocab, const Step& step) {
    if (step.logit_width == vocab) return linear(pool, x, packed, step.logits, step.sampled, in, vocab);
    std::vector<float> narrow(size_t(step.sampled * vocab));
    linear(pool, x, packed, narrow.data(), step.sampled, in, vocab);
    widen(narrow.data(), step.sampled, vocab, step.logits, step.logit_width);
}

void take_rows(const float* x, const int64_t* rows, int64_t count, float* y, int64_t width) {
    for (int64_t i = 0; i < count; ++i) std::memcpy(y + i * width, x + rows[i] * width, size_t(width) * 4);
}

// Returns 0, or 1 if a token id is not in the table.
int64_t run_one(Pool* pool, const Operation& op, const Step& step) {
    auto at = [&](int64_t column) { return step.scratch + column * step.rows; };
    const int64_t rows = op.is_sampled ? step.sampled : step.rows;
    const float* weight = static_cast<const float*>(op.weight);
    switch (op.kind) {
        case EMBED:
            return reinterpret_cast<Embed>(op.function)(pool, step.token_ids, op.weight, at(op.y), rows, op.in, op.out);
        case NORM: ml_norm(pool, at(op.x), weight, at(op.y), rows, op.in, float(op.eps)); break;
        case ADD_NORM: ml_add_norm(pool, at(op.z), at(op.x), weight, at(op.y), rows, op.in, float(op.eps)); break;
        case LINEAR:
            reinterpret_cast<Linear>(op.function)(pool, at(op.x), op.weight, at(op.y), rows, op.in, op.out);
            break;
        case LOGITS:
            run_logits(pool, reinterpret_cast<Linear>(op.function), op.weight, at(op.x), op.in, op.out, step);
            break;
        case ROTATE:
            ml_rotate_and_store(pool, step.kv, op.layer, at(op.x), at(op.y), rows, op.count, weight,
                                static_cast<const float*>(op.more), step.positions, step.slots);
            break;
        case ATTEND:
            ml_attend(pool, step.kv, op.layer, op.in, at(op.x), at(op.y), rows, op.count, step.positions,
                      step.row_sequence, step.block_tables, step.max_blocks);
            break;
        case SILU: ml_gated_silu(pool, at(op.x), at(op.y), rows, op.out); break;
        case LORA:
            if (step.num_segments > 0)
                ml_add_lora(pool, at(op.y), op.out, at(op.x), op.in, op.in, step.segments, step.num_segments,
                            static_cast<const int64_t*>(op.more), op.count, op.layer, step.is_bf16);
            break;
        case ADAPT_EMBEDDING:
            if (step.has_extras)
                ml_adapt_embedding(pool, step.row_ids, at(op.y), op.in, step.segments, step.num_segments, step.is_bf16);
            break;
        case ADAPT_NORM: {
            const bool sampled = op.is_sampled;
            const int64_t count = sampled ? step.num_sampled_segments : step.num_segments;
            if (step.has_extras && count > 0)
                ml_adapt_norm(pool, at(op.x), at(op.y), op.in, float(op.eps), op.count,
                              sampled ? step.sampled_segments : step.segments, count, step.is_bf16);
            break;
        }
        case ADAPT_LOGITS:
            if (step.num_sampled_segments > 0)
                ml_adapt_logits(pool, step.logits, step.logit_width, at(op.x), op.in, step.sampled_segments,
                                step.num_sampled_segments, step.is_bf16);
            break;
        case TAKE: take_rows(at(op.x), step.logit_rows, rows, at(op.y), op.in); break;
    }
    return 0;
}

}  // namespace
}  // namespace ml

extern "C" {

// Runs `count` operations. `seconds`, if given, has one entry a kind, to which the time of each operation is added.
// Returns 0, or 1 if a token id is not in the table; nothing after the lookup has then run.
int64_t ml_run(
    ml::Pool* pool, const void* operations, int64_t count, const void* step, double* seconds) {
    using namespace ml;
    const auto* ops = static_cast<const Operation*>(operations);
    for (int64_t i = 0; i < count; ++i) {
        Timed timed(seconds ? seconds + ops[i].kind : nullptr);
        if (run_one(pool, ops[i], *static_cast<const Step*>(step))) return 1;
    }
    return 0;
}

}  // extern "C"
