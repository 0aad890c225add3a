// Linear layers with bfloat16 weights and float32 activations: y = x @ weight.T.
//
// Packed layout: panels of sixteen output columns; panel p holds, for k = 0 .. in - 1, weight[16 p .. 16 p + 15][k] side
// by side. The last panel is padded with zeros. Each output is one FMA chain over k from zero.

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "products.h"
#include "slices.h"
#include "tile.h"

namespace ml {
namespace {

struct Product {
    const float* x;
    const bf16* packed;
    float* y;
    int64_t rows, in, out;

    const bf16* panel(int64_t p) const { return packed + p * in * LANES; }

    void put(int64_t row, int64_t panel, V16 value) const {
        int64_t column = panel * LANES;
        float* to = y + row * out + column;
        if (column + LANES <= out) store(to, value);
        else store_first(to, value, int(out - column));
    }
    V16 get(int64_t row, int64_t panel) const {
        int64_t column = panel * LANES;
        const float* from = y + row * out + column;
        return column + LANES <= out ? load(from) : load_first(from, int(out - column));
    }
};

// Rows [row, row + MR) times panels [first, first + P) over k in [k0, k1); a start other than 0 resumes from y.
// AHEAD fetches the panels that follow these.
template <int MR, int P, bool AHEAD>
void multiply(const Product& job, int64_t row, int64_t first, int64_t k0, int64_t k1) {
    const bf16* panels[P];
    for (int p = 0; p < P; ++p) panels[p] = job.panel(first + p) + k0 * LANES;
    V16 acc[MR][P];
    if (k0 == 0) {
        clear(acc);
    } else {
#pragma GCC unroll 16
        for (int r = 0; r < MR; ++r)
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) acc[r][p] = split<bf16>(job.get(row + r, first + p));
    }
    accumulate<bf16, MR, P, AHEAD>(job.x + row * job.in + k0, job.in, panels, LANES, k1 - k0, acc, P * job.in * LANES);
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) job.put(row + r, first + p, join<bf16>(acc[r][p]));
}

// Few rows: the weights stream from memory once, and the read takes all the time. One row has too few chains to hide the
// latency of an FMA, so several panels are read side by side. The processor prefetches these streams by itself, and
// explicit prefetches cost a fifth of the speed; from two rows on they raise it.
template <int MR> constexpr int stream_panels = MR == 1 ? 4 : MR == 2 ? 2 : 1;

template <int MR> void stream(const Product& job, int64_t first, int64_t last) {
    constexpr int P = stream_panels<MR>;
    int64_t p = first;
    for (; p + P <= last; p += P) multiply<MR, P, (MR > 1)>(job, 0, p, 0, job.in);
    for (; p < last; ++p) multiply<MR, 1, (MR > 1)>(job, 0, p, 0, job.in);
}

// Many rows: a piece of a panel stays in the first-level cache while the block's rows are multiplied by it.
void block(const Product& job, int64_t row0, int64_t row1, int64_t first, int64_t last) {
    constexpr int64_t DEPTH = 512;  // 16 KB of panel and 12 KB of rows in a cache of 32 KB
    for (int64_t k0 = 0; k0 < job.in; k0 += DEPTH) {
        int64_t k1 = std::min(job.in, k0 + DEPTH);
        int64_t p = first;
        for (; p + TILE_PANELS <= last; p += TILE_PANELS)
            for_row_tiles(row1 - row0, [&](auto constant, int64_t row) {
                constexpr int MR = decltype(constant)::value;
                if (row == 0) multiply<MR, TILE_PANELS, true>(job, row0, p, k0, k1);
                else multiply<MR, TILE_PANELS, false>(job, row0 + row, p, k0, k1);
            });
        for (; p < last; ++p)
            for_row_tiles(row1 - row0, [&](auto constant, int64_t row) {
                multiply<decltype(constant)::value, 1, false>(job, row0 + row, p, k0, k1);
            });
    }
}

void product(Pool* pool, const float* x, RowGroups groups, float* y, int64_t in, int64_t out) {
    // Rows of x that stay in a second-level cache of 512 KB beside the panel.
    const int64_t block_rows = std::max<int64_t>(TILE_ROWS, (256 << 10) / (4 * in) / TILE_ROWS * TILE_ROWS);
    const int64_t panels = (out + LANES - 1) / LANES;
    auto slices_of = [&](int64_t rows) {
        const int64_t group = rows == 1 ? stream_panels<1> : rows == 2 ? stream_panels<2> : TILE_PANELS;
        return Slices(rows, panels, block_rows, group, in * LANES, pool_threads(pool));
    };
    for_slices(pool, groups, slices_of, [&](const RowGroup& own, int64_t row0, int64_t row1, int64_t first, int64_t last) {
        const Product job{
            x + own.first * in, static_cast<const bf16*>(own.packed), y + own.first * out, own.rows, in, out};
        switch (job.rows) {
            case 1: return stream<1>(job, first, last);
            case 2: return stream<2>(job, first, last);
            case 3: return stream<3>(job, first, last);
            default: return block(job, row0, row1, first, last);
        }
    });
}

}  // namespace
}  // namespace ml

void ml::linear_bf16(Pool* pool, const float* x, RowGroups groups, float* y, int64_t in, int64_t out) {
    product(pool, x, groups, y, in, out);
}

void ml::embed_bf16(Pool* pool, const int64_t* ids, const void* packed, float* y, int64_t count, int64_t in, int64_t) {
    const int64_t chunks = chunks_for(count, count, 8, pool_threads(pool));
    parallel(pool, chunks, [&](int64_t chunk) {
        for (int64_t i = chunk_start(count, chunks, chunk); i < chunk_start(count, chunks, chunk + 1); ++i) {
            const bf16* from = static_cast<const bf16*>(packed) + ids[i] / LANES * in * LANES + ids[i] % LANES;
            for (int64_t k = 0; k < in; ++k) y[i * in + k] = to_float(from[k * LANES]);
        }
    });
}

extern "C" {

// Elements of the packed form of an (out, in) weight.
int64_t ml_packed_elements(int64_t out, int64_t in) {
    return (out + ml::LANES - 1) / ml::LANES * ml::LANES * in;
}

// weight (out, in) bfloat16 -> packed, as described at the top.
void ml_pack(ml::Pool* pool, const ml::bf16* weight, ml::bf16* packed, int64_t out, int64_t in) {
    using namespace ml;
    int64_t panels = (out + LANES - 1) / LANES;
    parallel(pool, panels, [&](int64_t panel) {
        bf16* to = packed + panel * in * LANES;
        for (int lane = 0; lane < LANES; ++lane) {
            int64_t column = panel * LANES + lane;
            for (int64_t k = 0; k < in; ++k) to[k * LANES + lane] = column < out ? weight[column * in + k] : bf16(0);
        }
    });
}

// Advises the system to back a buffer with large pages before it is filled: a step reads all weights, and small pages cost
// it address translations. A system without such advice ignores it.
void ml_advise_huge(void* data, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
    constexpr uintptr_t PAGE = 4096;
    uintptr_t first = (reinterpret_cast<uintptr_t>(data) + PAGE - 1) / PAGE * PAGE;
    uintptr_t last = (reinterpret_cast<uintptr_t>(data) + uintptr_t(bytes)) / PAGE * PAGE;
    if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
    (void)data, (void)bytes;
#endif
}

// Returns the whole pages inside a range of anonymous memory to the system; they read as zeros from then on. Pages that the
// range shares with its neighbours stay. Returns 0 where the system has no such call.
int ml_discard(void* data, int64_t bytes) {
#if defined(__linux__) && defined(MADV_DONTNEED)
    constexpr uintptr_t PAGE = 4096;
    uintptr_t first = (reinterpret_cast<uintptr_t>(data) + PAGE - 1) / PAGE * PAGE;
    uintptr_t last = (reinterpret_cast<uintptr_t>(data) + uintptr_t(bytes)) / PAGE * PAGE;
    if (last > first) {
#if defined(MADV_NOHUGEPAGE)
        // Else the system may make a large page of the range and its neighbours, and so take the memory again.
        madvise(reinterpret_cast<void*>(first), last - first, MADV_NOHUGEPAGE);
#endif
        madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
    }
    return 1;
#else
    (void)data, (void)bytes;
    return 0;
#endif
}

}  // extern "C"
