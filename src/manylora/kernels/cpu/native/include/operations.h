// The functions that Python calls and that a recorded program (program.cpp) runs; each is described where it is defined.
#pragma once

#include <cstdint>

#include "simd.h"

namespace ml {
class Pool;
struct Kv;
}  // namespace ml

extern "C" {

void ml_linear(
    ml::Pool* pool, const float* x, const ml::bf16* packed, float* y, int64_t rows, int64_t in, int64_t out);
int64_t ml_embed(
    ml::Pool* pool, const int64_t* ids, const ml::bf16* packed, float* y, int64_t count, int64_t in, int64_t out);
void ml_norm(ml::Pool* pool, const float* x, const float* weight, float* y, int64_t rows, int64_t width, float eps);
void ml_add_norm(
    ml::Pool* pool, float* residual, const float* delta, const float* weight, float* y, int64_t rows, int64_t width,
    float eps);
void ml_gated_silu(ml::Pool* pool, const float* gate_up, float* y, int64_t rows, int64_t width);
void ml_rotate_and_store(
    ml::Pool* pool, const ml::Kv* kv, int64_t layer, const float* qkv, float* q, int64_t rows, int64_t heads,
    const float* cos, const float* sin, const int32_t* positions, const int64_t* slots);
void ml_attend(
    ml::Pool* pool, const ml::Kv* kv, int64_t layer, int64_t window, const float* q, float* out, int64_t rows,
    int64_t heads, const int32_t* positions, const int32_t* row_sequence, const int32_t* block_tables,
    int64_t max_blocks);
void ml_add_lora(
    ml::Pool* pool, float* y, int64_t y_stride, const float* x, int64_t x_stride, int64_t in, const int64_t* segments,
    int64_t num_segments, const int64_t* targets, int64_t num_targets, int64_t layer, int64_t is_bf16);
void ml_adapt_embedding(
    ml::Pool* pool, const int64_t* ids, float* y, int64_t width, const int64_t* segments, int64_t num_segments,
    int64_t is_bf16);
void ml_adapt_norm(
    ml::Pool* pool, const float* x, float* y, int64_t width, float eps, int64_t index, const int64_t* segments,
    int64_t num_segments, int64_t is_bf16);
void ml_adapt_logits(
    ml::Pool* pool, float* logits, int64_t stride, const float* x, int64_t width, const int64_t* segments,
    int64_t num_segments, int64_t is_bf16);

}  // extern "C"
