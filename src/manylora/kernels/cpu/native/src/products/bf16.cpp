// Linear layers with bfloat16 weights and activations rounded to bfloat16: y = x @ weight.T, sums in float32.
//
// Packed layout: panels of thirty-two outputs; panel p holds, for each pair of inputs (2 j, 2 j + 1), the two weights
// of output 32 p, of output 32 p + 1, ... side by side: 128 bytes. Missing outputs and the second half of an odd pair
// are zeros. Each output is one chain of `add_products` over the pairs from zero.

#include <vector>

#include "pairs.h"
#include "products.h"
#include "slices.h"
#include "tile.h"

namespace ml {
namespace {

constexpr int WIDTH = 2 * LANES;  // outputs of a panel: the two registers that a tile is wide
constexpr int64_t PAIR = 2 * WIDTH;  // elements from one pair of a panel to the next

int64_t pairs_of(int64_t in) { return (in + 1) / 2; }
int64_t panels_of(int64_t out) { return (out + WIDTH - 1) / WIDTH; }

struct Product {
    // Rounded rows, tile after tile: for each pair, the rows of a tile side by side, so that one address with constant
    // offsets serves a tile of any height.
    const uint32_t* x;
    const bf16* packed;
    float* y;
    Tiles tiles;
    int64_t pairs, out;
};

// The MR rows of the tile at `row` times P panels from `first` on. AHEAD also fetches the following panels into the
// second-level cache.
template <int MR, int P, bool AHEAD>
void multiply(const Product& job, int64_t row, int64_t first) {
    constexpr int N = 2 * P;
    V16 acc[MR][N];
    clear(acc);
    const int64_t next = job.pairs * PAIR;
    const bf16* panel = job.packed + first * next;
    const uint32_t* x = job.x + row * job.pairs;
    for (int64_t k = 0; k < job.pairs; ++k, x += MR, panel += PAIR) {
        Pairs weight[N];
#pragma GCC unroll 16
        for (int n = 0; n < N; ++n) {
            const bf16* from = panel + n / 2 * next + n % 2 * (PAIR / 2);
            weight[n] = load_pairs(from);
            if constexpr (AHEAD) __builtin_prefetch(from + P * next, 0, 2);
        }
#pragma GCC unroll 16
        for (int r = 0; r < MR; ++r) {
            Pairs value = one_pair(x + r);
#pragma GCC unroll 16
            for (int n = 0; n < N; ++n) acc[r][n] = add_products(acc[r][n], weight[n], value);
        }
    }
    put_columns(job.y, job.out, row, first * WIDTH, acc);
}

// A single tile: the weights stream from memory once, and below some eight rows the read takes all the time. Panels side by
// side, as many as registers allow, give more chains, which hide the latency of additions, and more streams for the
// processor to prefetch. Explicit prefetches cost a tenth of the speed with two to four rows and gain a tenth otherwise
// (measured on a Zen 4).
constexpr int side_by_side(int64_t rows) {
    if (!HAS_PRODUCTS) return 1;
    return rows <= 2 ? 4 : rows <= 4 ? 3 : rows <= 6 ? 2 : 1;
}
constexpr bool is_fetched(int64_t rows) { return rows < 2 || rows > 4; }

template <int MR> void stream(const Product& job, int64_t first, int64_t last) {
    constexpr int P = side_by_side(MR);
    int64_t p = first;
    for (; p + P <= last; p += P) multiply<MR, P, is_fetched(MR)>(job, 0, p);
    for (; p < last; ++p) multiply<MR, 1, is_fetched(MR)>(job, 0, p);
}

// Several tiles: a panel stays in the second-level cache while the block's tiles are multiplied by it. Pieces of a panel
// for the first-level cache are slower, since the sums have to be stored between them.
void block(const Product& job, int64_t tile0, int64_t tile1, int64_t first, int64_t last) {
    for (int64_t p = first; p < last; ++p)
        for (int64_t tile = tile0; tile < tile1; ++tile) {
            const int64_t row = job.tiles.start(tile);
            with_rows(int(job.tiles.start(tile + 1) - row), [&](auto constant) {
                constexpr int MR = decltype(constant)::value;
                if (tile == tile0) multiply<MR, 1, true>(job, row, p);
                else multiply<MR, 1, false>(job, row, p);
            });
        }
}

void product(Pool* pool, const uint32_t* x, RowGroups groups, float* y, int64_t pairs, int64_t out) {
    // Rows of x that stay in a second-level cache of 1 MB beside a panel.
    const int64_t block_rows = std::max<int64_t>(TILE_ROWS, (512 << 10) / (4 * pairs));
    auto slices_of = [&](int64_t rows) {
        const int64_t group = Tiles(rows).count > 1 ? 1 : side_by_side(rows);
        return Slices(rows, panels_of(out), block_rows, group, pairs * PAIR, pool_threads(pool));
    };
    for_slices(pool, groups, slices_of, [&](const RowGroup& own, int64_t row0, int64_t row1, int64_t first, int64_t last) {
        const Tiles tiles(own.rows);
        const Product job{
            x + own.first * pairs, static_cast<const bf16*>(own.packed), y + own.first * out, tiles, pairs, out};
        if (tiles.count > 1) return block(job, tiles.first_from(row0), tiles.first_from(row1), first, last);
        with_rows(int(tiles.rows), [&](auto constant) { stream<decltype(constant)::value>(job, first, last); });
    });
}

// One row of a tile of `height` rows.
void round_row(const float* x, int64_t in, uint32_t* to, int64_t height) {
    auto get = [&](int64_t k) {
        if (k + LANES <= in) return load(x + k);
        return k < in ? load_first(x + k, int(in - k)) : zero();
    };
    for (int64_t k = 0; k < in; k += WIDTH) {
        uint32_t pairs[LANES];
        round_pairs(pairs, get(k), get(k + LANES));
        const int64_t count = std::min<int64_t>(LANES, pairs_of(in - k));
        for (int64_t i = 0; i < count; ++i) to[(k / 2 + i) * height] = pairs[i];
    }
}

// The rounded rows of this thread's current call, for `Product`; the memory grows to the largest step and is kept.
const uint32_t* round_rows(Pool* pool, const float* x, RowGroups groups, int64_t in) {
    thread_local std::vector<uint32_t> scratch;
    const int64_t pairs = pairs_of(in);
    if (int64_t(scratch.size()) < groups.rows * pairs) scratch.resize(size_t(groups.rows * pairs));
    uint32_t* to = scratch.data();  // the pool's threads must write here and not into scratch of their own
    for_tiles(pool, groups, PLAIN_HEIGHT, in, [&](int64_t first, int64_t height) {
        for (int64_t row = first; row < first + height; ++row)
            round_row(x + row * in, in, to + first * pairs + (row - first), height);
    });
    return to;
}

}  // namespace
}  // namespace ml

void ml::linear_bf16_pairs(Pool* pool, const float* x, RowGroups groups, float* y, int64_t in, int64_t out) {
    product(pool, round_rows(pool, x, groups, in), groups, y, pairs_of(in), out);
}

void ml::embed_bf16_pairs(
    Pool* pool, const int64_t* ids, const void* packed, float* y, int64_t count, int64_t in, int64_t) {
    const int64_t chunks = chunks_for(count, count, 8, pool_threads(pool));
    parallel(pool, chunks, [&](int64_t chunk) {
        for (int64_t i = chunk_start(count, chunks, chunk); i < chunk_start(count, chunks, chunk + 1); ++i) {
            const int64_t panel = ids[i] / WIDTH * pairs_of(in) * PAIR;
            const bf16* from = static_cast<const bf16*>(packed) + panel + ids[i] % WIDTH * 2;
            for (int64_t k = 0; k < in; ++k) y[i * in + k] = to_float(from[k / 2 * PAIR + k % 2]);
        }
    });
}

extern "C" {

// Elements of the packed form of an (out, in) weight.
int64_t ml_bf16_packed_elements(int64_t out, int64_t in) { return ml::panels_of(out) * ml::pairs_of(in) * ml::PAIR; }

// weight (out, in) bfloat16 -> packed, as described at the top.
void ml_bf16_pack(ml::Pool* pool, const ml::bf16* weight, ml::bf16* packed, int64_t out, int64_t in) {
    using namespace ml;
    const int64_t pairs = pairs_of(in);
    parallel(pool, panels_of(out), [&](int64_t panel) {
        bf16* to = packed + panel * pairs * PAIR;
        for (int64_t lane = 0; lane < WIDTH; ++lane) {
            const int64_t column = panel * WIDTH + lane;
            const int64_t count = column < out ? in : 0;
            for (int64_t k = 0; k < 2 * pairs; ++k)
                to[k / 2 * PAIR + 2 * lane + k % 2] = k < count ? weight[column * in + k] : bf16(0);
        }
    });
}

}  // extern "C"
