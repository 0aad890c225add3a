// Products and embedding rows of one packed form of a weight each.
//
//   linear_*  y (rows, out) = x (rows, in) @ weight.T
//   embed_*   y (count, in) = rows `ids` of the (out, in) table; every id is in [0, out)
// All matrices are contiguous float32.
#pragma once

#include "simd.h"

namespace ml {

class Pool;

void linear_bf16(Pool* pool, const float* x, const void* packed, float* y, int64_t rows, int64_t in, int64_t out);
void linear_bf16_pairs(Pool* pool, const float* x, const void* packed, float* y, int64_t rows, int64_t in, int64_t out);
void linear_int8(Pool* pool, const float* x, const void* packed, float* y, int64_t rows, int64_t in, int64_t out);

void embed_bf16(Pool* pool, const int64_t* ids, const void* packed, float* y, int64_t count, int64_t in, int64_t out);
void embed_bf16_pairs(
    Pool* pool, const int64_t* ids, const void* packed, float* y, int64_t count, int64_t in, int64_t out);
void embed_int8(Pool* pool, const int64_t* ids, const void* packed, float* y, int64_t count, int64_t in, int64_t out);

}  // namespace ml
