// The one product micro-kernel: MR rows times P panels of sixteen columns, a sequential FMA chain over k for each output.
//
// Linear layers, attention scores, attention outputs and LoRA's expand all call it. The chain of an output element does
// not depend on MR or P, which are chosen for speed alone. So a row has the same bits in every batch.
#pragma once

#include "simd.h"

namespace ml {

#if defined(__AVX512F__)
constexpr int REGISTERS = 32, SUM_REGISTERS = 1;  // of the processor; in sixteen sums
constexpr int TILE_ROWS = 12;  // 12 x 2 accumulators, two weights and a broadcast in 32 registers
constexpr int TILE_PANELS = 2;
#elif defined(__aarch64__)
constexpr int REGISTERS = 32, SUM_REGISTERS = 4;
constexpr int TILE_ROWS = 6;  // 6 x 1 quadruples of accumulators, four weights and a broadcast in 32 registers
constexpr int TILE_PANELS = 1;
#else
constexpr int REGISTERS = 16, SUM_REGISTERS = 2;
constexpr int TILE_ROWS = 6;  // 6 x 1 pairs of accumulators, two weights and a broadcast in 16 registers
constexpr int TILE_PANELS = 1;
#endif

// One step of k: every output of the tile gets one fused multiply-add.
template <class W, int MR, int P>
inline __attribute__((always_inline)) void step(const float* __restrict x, int64_t ldx, const W* const* panel, V16 (&acc)[MR][P]) {
    V16 weight[P];
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) weight[p] = load_split<W>(panel[p]);
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r) {
        V16 value = set1(x[r * ldx]);
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) acc[r][p] = fma(value, weight[p], acc[r][p]);
    }
}

// acc[r][p] += x[r * ldx + k] * w[p][k * stride + lane], k = 0 .. count - 1 in order; lanes in W's split order.
// AHEAD: also prefetch the next panels, `ahead` elements further on, into the second-level cache.
template <class W, int MR, int P, bool AHEAD = false>
inline __attribute__((always_inline)) void accumulate(
    const float* __restrict x, int64_t ldx, const W* const* __restrict w, int64_t stride, int64_t count, V16 (&acc)[MR][P],
    int64_t ahead = 0) {
    const W* panel[P];
    for (int p = 0; p < P; ++p) panel[p] = w[p];
    int64_t k = 0;
    for (; k + 2 <= count; k += 2) {
        if constexpr (AHEAD)
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) __builtin_prefetch(panel[p] + ahead, 0, 2);
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) {
            step<W, MR, P>(x + k + i, ldx, panel, acc);
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) panel[p] += stride;
        }
    }
    if (k < count) step<W, MR, P>(x + k, ldx, panel, acc);
}

template <int MR, int P> inline void clear(V16 (&acc)[MR][P]) {
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) acc[r][p] = zero();
}

// Calls f with the number of rows as a constant, `TILE_ROWS` at a time, then the rest at once: f(constant, first_row).
template <int N> struct RowCount { static constexpr int value = N; };

template <int N = TILE_ROWS, class F> inline void with_rows(int rows, F&& f) {
    if constexpr (N > 0) {
        if (rows == N) return f(RowCount<N>{});
        with_rows<N - 1>(rows, static_cast<F&&>(f));
    }
}

// The most rows of a tile: `alone` where one tile has all rows of a group, `among` where there are more.
struct TileHeight {
    int64_t alone, among;

    constexpr int64_t of(int64_t rows) const { return rows <= alone ? alone : among; }
};
constexpr TileHeight PLAIN_HEIGHT{TILE_ROWS, TILE_ROWS};

// The rows of a group, cut into tiles of nearly equal size, once for a whole product.
struct Tiles {
    int64_t rows, count;

    explicit Tiles(int64_t rows, TileHeight height = PLAIN_HEIGHT) : Tiles(rows, height.of(rows)) {}
    int64_t start(int64_t tile) const { return rows * tile / count; }
    // The first tile that starts at `row` or after it.
    int64_t first_from(int64_t row) const { return (row * count + rows - 1) / rows; }

  private:
    Tiles(int64_t rows, int64_t most) : rows(rows), count((rows + most - 1) / most) {}
};

// Stores the columns inside y, (rows, out), of MR rows of N registers from `column` on. All loops are unrolled: with an index
// that is not constant the compiler would keep the sums in memory.
template <int MR, int N>
inline void put_columns(float* y, int64_t out, int64_t row, int64_t column, const V16 (&value)[MR][N]) {
    float* to = y + row * out + column;
    if (column + N * LANES <= out) {
#pragma GCC unroll 16
        for (int r = 0; r < MR; ++r)
#pragma GCC unroll 16
            for (int n = 0; n < N; ++n) store(to + r * out + n * LANES, value[r][n]);
        return;
    }
    float whole[N * LANES];
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 16
        for (int n = 0; n < N; ++n) store(whole + n * LANES, value[r][n]);
        std::memcpy(to + r * out, whole, size_t(out - column) * 4);
    }
}

// Cut `rows` into tiles of at most TILE_ROWS of nearly equal size; calls f(constant, first row).
template <class F> inline void for_row_tiles(int64_t rows, F&& f) {
    int64_t tiles = (rows + TILE_ROWS - 1) / TILE_ROWS;
    int64_t first = 0;
    for (int64_t t = 0; t < tiles; ++t) {
        int64_t last = rows * (t + 1) / tiles;
        with_rows(int(last - first), [&](auto constant) { f(constant, first); });
        first = last;
    }
}

}  // namespace ml
