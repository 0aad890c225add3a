// Products and embedding rows of one packed form of a weight each.
//
//   linear_*  y (rows, out) = x (rows, in) @ weight.T, with a weight (out, in) for each group of rows
//   embed_*   y (count, in) = rows `ids` of the (out, in) table; every id is in [0, out)
// All matrices are contiguous float32.
#pragma once

#include "layouts.h"

namespace ml {

class Pool;

// The rows [first, first + rows) of x and y, and the packed weight that they are multiplied by.
struct RowGroup { const void* packed; int64_t first, rows; };

// Groups of at least one row each, side by side and in order; `rows` counts the rows of all.
struct RowGroups {
    const RowGroup* groups;
    int64_t count, rows;

    const RowGroup* begin() const { return groups; }
    const RowGroup* end() const { return groups + count; }
};

void linear_bf16(Pool* pool, const float* x, RowGroups groups, float* y, int64_t in, int64_t out);
void linear_bf16_pairs(Pool* pool, const float* x, RowGroups groups, float* y, int64_t in, int64_t out);
void linear_int8(Pool* pool, const float* x, RowGroups groups, float* y, int64_t in, int64_t out);
void linear_int4(Pool* pool, const float* x, RowGroups groups, float* y, int64_t in, int64_t out);

// The product of the packed form `format`.
void multiply(Pool* pool, WeightFormat format, const float* x, RowGroups groups, float* y, int64_t in, int64_t out);

void embed_bf16(Pool* pool, const int64_t* ids, const void* packed, float* y, int64_t count, int64_t in, int64_t out);
void embed_bf16_pairs(
    Pool* pool, const int64_t* ids, const void* packed, float* y, int64_t count, int64_t in, int64_t out);
void embed_int8(Pool* pool, const int64_t* ids, const void* packed, float* y, int64_t count, int64_t in, int64_t out);
void embed_int4(Pool* pool, const int64_t* ids, const void* packed, float* y, int64_t count, int64_t in, int64_t out);

}  // namespace ml
