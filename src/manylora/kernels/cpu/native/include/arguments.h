// The arguments of operations. `arguments.py` writes those of a recorded operation as words, `Argument` reads them.
#pragma once

#include <cstring>

#include "layouts.h"

namespace ml {

class Pool;

struct Rows {
    float* data;  // (count, width)
    int64_t count, width;

    float* row(int64_t index) const { return data + index * width; }
};

struct PackedWeight {
    const void* data;
    int64_t outputs, inputs;
    WeightFormat format;
};

// The weights of the experts by number; all have the same shape and format.
struct ExpertWeights { const PackedWeight* first; int64_t count; };
struct RopeTable { const float *cos, *sin; };  // (positions, head_dim / 2) each; null: no rotation
struct LoraTargets { const LoraTarget* first; int64_t count; };
struct TokenIds { const int64_t* first; };
struct RowIndices { const int64_t* first; };

template <class T> const T* pointer(int64_t word) { return reinterpret_cast<const T*>(word); }

template <class T> struct Argument;

template <> struct Argument<Rows> {
    static constexpr int words = 3;
    static Rows read(const StepInput& step, const int64_t* word) {
        const int64_t count = word[2] ? step.rows * word[2] : step.sampled;
        if (word[0] == OUTSIDE_SCRATCH) return {step.logits, count, step.logit_width};
        return {step.scratch + word[0] * step.rows, count, word[1]};
    }
};
template <> struct Argument<PackedWeight> {
    static constexpr int words = 4;
    static PackedWeight read(const StepInput&, const int64_t* word) {
        return {pointer<void>(word[0]), word[1], word[2], WeightFormat(word[3])};
    }
};
template <> struct Argument<ExpertWeights> {
    static constexpr int words = 2;
    static ExpertWeights read(const StepInput&, const int64_t* word) {
        static_assert(sizeof(PackedWeight) == Argument<PackedWeight>::words * sizeof(int64_t));
        return {pointer<PackedWeight>(word[0]), word[1]};
    }
};
template <> struct Argument<const float*> {
    static constexpr int words = 1;
    static const float* read(const StepInput&, const int64_t* word) { return pointer<float>(word[0]); }
};
template <> struct Argument<RopeTable> {
    static constexpr int words = 2;
    static RopeTable read(const StepInput&, const int64_t* word) {
        return {pointer<float>(word[0]), pointer<float>(word[1])};
    }
};
template <> struct Argument<LoraTargets> {
    static constexpr int words = 2;
    static LoraTargets read(const StepInput&, const int64_t* word) { return {pointer<LoraTarget>(word[0]), word[1]}; }
};
template <> struct Argument<double> {
    static constexpr int words = 1;
    static double read(const StepInput&, const int64_t* word) {
        double value;
        std::memcpy(&value, word, sizeof value);
        return value;
    }
};
template <> struct Argument<int64_t> {
    static constexpr int words = 1;
    static int64_t read(const StepInput&, const int64_t* word) { return *word; }
};
template <> struct Argument<bool> {
    static constexpr int words = 1;
    static bool read(const StepInput&, const int64_t* word) { return *word != 0; }
};
template <> struct Argument<TokenIds> {
    static constexpr int words = 0;
    static TokenIds read(const StepInput& step, const int64_t*) { return {step.token_ids}; }
};
template <> struct Argument<RowIndices> {
    static constexpr int words = 0;
    static RowIndices read(const StepInput& step, const int64_t*) { return {step.logit_rows}; }
};
template <> struct Argument<const Kv&> {
    static constexpr int words = 0;
    static const Kv& read(const StepInput& step, const int64_t*) { return *step.kv; }
};
template <> struct Argument<const AttentionBatch&> {
    static constexpr int words = 0;
    static const AttentionBatch& read(const StepInput& step, const int64_t*) { return step.attention; }
};
template <> struct Argument<const LoraBatch&> {
    static constexpr int words = 0;
    static const LoraBatch& read(const StepInput& step, const int64_t*) { return step.lora; }
};
template <> struct Argument<const StepInput&> {
    static constexpr int words = 0;
    static const StepInput& read(const StepInput& step, const int64_t*) { return step; }
};

}  // namespace ml
