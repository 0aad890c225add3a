// How a step's adapters are told to native code, and where one adapter's extras lie.
#pragma once

#include <cstdint>

namespace ml {

// Rows [start, stop) belong to one adapter. Written by `CpuKernels.prepare_lora`, field by field.
struct Segment {
    int64_t start, stop;
    const void* image;       // bf16 or float32
    const int64_t* table;    // (layers, 7, 3): offset of A, offset of B, rank
    const int64_t* vectors;  // (layers, 7, 2): offset of the bias, offset of the gain; null where there are none
    const int64_t* extras;   // laid out as kernels/adapter_layout.py says; null where there are none
};

// kernels/adapter_layout.py
enum Extra : int64_t {
    HEAD = 0, EMBED = 3, HEAD_ROWS = 6, EMBED_ROWS = 9, VOCABULARY = 12, HEAD_VECTORS = 14, EMBED_VECTORS = 16, NORMS_AT = 18
};

}  // namespace ml
