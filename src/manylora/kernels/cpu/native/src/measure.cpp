// The two ceilings of a machine for these kernels: the rates at which its cores read memory and multiply-add.

#include <algorithm>
#include <chrono>

#include "pool.h"
#include "tile.h"

namespace ml {
namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Holds results, so that the optimiser keeps the loops.
volatile float sink;

}  // namespace
}  // namespace ml

extern "C" {

const char* ml_isa() { return ml::ISA; }

// Bytes per second at which the pool reads `floats` floats (many times the last-level cache), best of `repeats`.
double ml_measure_bandwidth(ml::Pool* pool, const float* data, int64_t floats, int64_t repeats) {
    using namespace ml;
    double best = 1e30;
    const int64_t chunks = pool_threads(pool) * 64;
    for (int64_t i = 0; i < repeats; ++i) {
        auto start = std::chrono::steady_clock::now();
        parallel(pool, chunks, [&](int64_t chunk) {
            const int64_t last = chunk_start(floats, chunks, chunk + 1) - 4 * LANES;
            V16 sums[4] = {zero(), zero(), zero(), zero()};
            for (int64_t at = chunk_start(floats, chunks, chunk); at <= last; at += 4 * LANES)
                for (int j = 0; j < 4; ++j) sums[j] = add(sums[j], load(data + at + j * LANES));
            sink = sum_lanes(add(add(sums[0], sums[1]), add(sums[2], sums[3])));
        });
        best = std::min(best, seconds_since(start));
    }
    return double(floats) * 4 / best;
}

// Floating-point operations per second of the pool on independent multiply-adds in registers, best of `repeats`.
double ml_measure_flops(ml::Pool* pool, int64_t repeats) {
    using namespace ml;
    constexpr int64_t STEPS = 200000;
    constexpr int CHAINS = 6;  // twelve registers of eight: enough to hide the latency of two pipes
    const int64_t chunks = pool_threads(pool) * 8;
    double best = 1e30;
    for (int64_t i = 0; i < repeats; ++i) {
        auto start = std::chrono::steady_clock::now();
        parallel(pool, chunks, [&](int64_t) {
            V16 acc[CHAINS], x = set1(0.999999f), y = set1(1e-6f);
            for (int c = 0; c < CHAINS; ++c) acc[c] = set1(float(c));
            for (int64_t step = 0; step < STEPS; ++step)
#pragma GCC unroll 16
                for (int c = 0; c < CHAINS; ++c) acc[c] = fma(acc[c], x, y);
            V16 total = acc[0];
            for (int c = 1; c < CHAINS; ++c) total = add(total, acc[c]);
            sink = sum_lanes(total);
        });
        best = std::min(best, seconds_since(start));
    }
    return double(chunks) * STEPS * CHAINS * LANES * 2 / best;
}

}  // extern "C"
