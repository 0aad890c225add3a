// Products of quantised rows with panels of quantised weights: the rows, and the division of the work.
//
// A row of activations is quantised in groups of 32 inputs, each by itself: `x = level * worth`, the level in [-127, 127],
// that of the group's largest element 127.
#pragma once

#include "integers.h"
#include "slices.h"
#include "tile.h"

namespace ml {

constexpr int64_t QUAD_BYTES = 4 * LANES;  // four weights of a byte for each of sixteen outputs
constexpr int64_t GROUP_QUADS = 8;         // of a row that share a scale
constexpr int64_t SHORT = 32 << 10;        // bytes of a panel that the processor does not fetch ahead in time by itself

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The form of quantised rows: `quads` times four inputs, zeros after the last; `words` a quad; the sums of the levels are
// multiplied by `offset`.
struct RowForm {
    int64_t in, quads;
    int words;
    int32_t offset;

    int64_t groups() const { return ceil_div(quads, GROUP_QUADS); }
    int64_t width() const { return quads * words; }
};

// Tile after tile: for each quad the words of a tile's rows side by side, so that one address with constant offsets serves a
// tile of any height; for each group, of a tile's rows, what a level is worth and the sum of the levels times the form's offset.
struct QuantisedRows {
    const uint32_t* levels;
    const float* worth;
    const int32_t* sums;

    // Those of the rows from `row` on, with which a tile begins.
    QuantisedRows from(int64_t row, const RowForm& form) const {
        return {levels + row * form.width(), worth + row * form.groups(), sums + row * form.groups()};
    }
};

// `height`: of the tiles. The memory is this thread's, until its next call.
QuantisedRows quantise_rows(Pool* pool, const float* x, RowGroups groups, TileHeight height, const RowForm& form);

// to[k] = round(x[k] * 127 / largest |x|), k < count, and up to fifteen zeros. Returns what one level is worth. A group that
// holds a NaN or an infinity becomes zeros worth NaN.
float quantise(const float* x, int64_t count, int8_t* to);

// The results of MR rows of N registers while groups are added to them. The sums of a group take as many registers, and
// where both do not fit, the results lie in memory. A compiler that may choose spills the sums, which are used more often.
template <int MR, int N> struct Totals {
    static constexpr bool FIT = 2 * MR * N + N + 1 <= REGISTERS / SUM_REGISTERS;

    V16 held[FIT ? MR : 1][FIT ? N : 1];
    alignas(64) float lanes[FIT ? 1 : MR * N * LANES];

    inline __attribute__((always_inline)) Totals() {
#pragma GCC unroll 16
        for (int r = 0; r < MR; ++r)
#pragma GCC unroll 16
            for (int n = 0; n < N; ++n) set(r, n, zero());
        hide();
    }
    // The compiler must not keep the lanes in registers from one group to the next.
    inline __attribute__((always_inline)) void hide() {
        if constexpr (!FIT) __asm__("" : : "r"(lanes) : "memory");
    }
    inline __attribute__((always_inline)) V16 get(int r, int n) const {
        if constexpr (FIT) return held[r][n];
        else return load(lanes + (r * N + n) * LANES);
    }
    inline __attribute__((always_inline)) void set(int r, int n, V16 value) {
        if constexpr (FIT) held[r][n] = value;
        else store(lanes + (r * N + n) * LANES, value);
    }
    // Stores them in units of the outputs' scales.
    inline __attribute__((always_inline)) void put(
        float* y, int64_t out, int64_t row, int64_t column, const float* scales) const {
        V16 value[MR][N];
#pragma GCC unroll 16
        for (int n = 0; n < N; ++n) {
            const V16 scale = load(scales + column + n * LANES);
#pragma GCC unroll 16
            for (int r = 0; r < MR; ++r) value[r][n] = mul(get(r, n), scale);
        }
        put_columns(y, out, row, column, value);
    }
};

// Calls job.multiply<MR, P, AHEAD>(row, first panel) for all tiles of rows and all panels.
//
// A single tile streams the weights from memory once. Panels side by side give more chains, which hide the latency of
// products, and more streams for the processor to prefetch. Fetching the next panels ahead is a third faster with short ones
// and takes up to two fifths of the speed with long ones of one row, which the processor fetches by itself. Of several tiles, each panel stays in the second-level cache
// while the tiles of a block are multiplied by it.
template <class Job> struct Division {
    static constexpr int HEIGHT = Job::HEIGHT.alone;

    template <int MR> static void stream(const Job& job, int64_t first, int64_t last) {
        constexpr int P = Job::side_by_side(MR);
        const bool is_ahead = job.is_fetched_ahead(MR);
        int64_t p = first;
        for (; p + P <= last; p += P)
            if (is_ahead) job.template multiply<MR, P, true>(0, p);
            else job.template multiply<MR, P, false>(0, p);
        for (; p < last; ++p) job.template multiply<MR, 1, false>(0, p);
    }

    static void block(const Job& job, int64_t tile0, int64_t tile1, int64_t first, int64_t last) {
        const bool is_ahead = job.is_fetched_ahead(HEIGHT);
        for (int64_t p = first; p < last; ++p)
            for (int64_t tile = tile0; tile < tile1; ++tile) {
                const int64_t row = job.tiles.start(tile);
                with_rows<HEIGHT>(int(job.tiles.start(tile + 1) - row), [&](auto constant) {
                    constexpr int MR = decltype(constant)::value;
                    if (tile == tile0 && is_ahead) job.template multiply<MR, 1, true>(row, p);
                    else job.template multiply<MR, 1, false>(row, p);
                });
            }
    }

    // make(group of rows) returns a Job; panels, panel_cost: as for `Slices`.
    template <class F>
    static void run(Pool* pool, RowGroups groups, const RowForm& form, int64_t panels, int64_t panel_cost, F&& make) {
        // Rows that stay in a second-level cache of 1 MB beside a panel.
        const int64_t block_rows = std::max<int64_t>(HEIGHT, (512 << 10) / (4 * form.width()));
        auto slices_of = [&](int64_t rows) {
            const int64_t group = rows > HEIGHT ? 1 : Job::side_by_side(int(rows));
            return Slices(rows, panels, block_rows, group, panel_cost, pool_threads(pool));
        };
        for_slices(pool, groups, slices_of, [&](const RowGroup& own, int64_t row0, int64_t row1, int64_t first, int64_t last) {
            const Job job = make(own);
            const Tiles& tiles = job.tiles;
            if (tiles.count > 1) return block(job, tiles.first_from(row0), tiles.first_from(row1), first, last);
            with_rows<HEIGHT>(int(tiles.rows), [&](auto constant) { stream<decltype(constant)::value>(job, first, last); });
        });
    }
};

}  // namespace ml
