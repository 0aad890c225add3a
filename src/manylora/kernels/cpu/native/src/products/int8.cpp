// Linear layers with int8 weights: y = x @ weight.T, a scale for each output and one for each group of inputs of a row of x.
//
// Packed layout: the scales of all outputs as float32, then panels of TILE_PANELS times sixteen outputs; panel p holds, for
// each quad of inputs (4 q .. 4 q + 3), the four levels of its first output, of its second output, ... side by side. A level
// in [-127, 127] is stored as a byte that is 128 more. Missing outputs and inputs are levels of zero.
//
// Products take the bytes as they are: sum (level + 128) * x - 128 * sum x, and the second sum is known before the product.
// The sums of a group are exact integers. Groups are added in ascending order as float32, a fused multiply-add each.

#include <vector>

#include "products.h"
#include "quantised.h"

namespace ml {
namespace {

constexpr int32_t OFFSET = 128;
constexpr int64_t WIDTH = TILE_PANELS * LANES;          // outputs of a panel
constexpr int64_t STEP = TILE_PANELS * QUAD_BYTES;      // bytes from one quad of a panel to the next

int64_t quads_of(int64_t in) { return ceil_div(in, 4); }
int64_t panels_of(int64_t out) { return ceil_div(out, WIDTH); }

// The parts of a packed (out, in) weight.
float* scales_of(void* packed) { return static_cast<float*>(packed); }
const float* scales_of(const void* packed) { return static_cast<const float*>(packed); }
uint8_t* levels_of(void* packed, int64_t out) {
    return reinterpret_cast<uint8_t*>(scales_of(packed) + panels_of(out) * WIDTH);
}
const uint8_t* levels_of(const void* packed, int64_t out) {
    return reinterpret_cast<const uint8_t*>(scales_of(packed) + panels_of(out) * WIDTH);
}

// Seven rows have all sums and results in registers; a taller tile stores and loads its results for each group. It is
// slower by a sixth where weights lie in a cache, and faster where one tile reads them from memory (measured on a Zen 4).
constexpr TileHeight int8_height() {
    return WORDS == 1 && TILE_PANELS == 2 ? TileHeight{10, 7} : PLAIN_HEIGHT;
}

// Word J of one quad of k: every sum of the tile gets its products.
template <int J, int MR, int P>
inline __attribute__((always_inline)) void step(
    const uint8_t* panel, int64_t next, const uint32_t* levels, Sums (&acc)[MR][P * TILE_PANELS]) {
    constexpr int N = P * TILE_PANELS;
    Quads weight[N];
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n)
        weight[n] = load_quads<J>(panel + n / TILE_PANELS * next + n % TILE_PANELS * QUAD_BYTES);
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r) {
        const One level = one_word(levels + r * WORDS + J);
#pragma GCC unroll 16
        for (int n = 0; n < N; ++n) acc[r][n] = add_products(acc[r][n], weight[n], level);
    }
}

struct Product {
    static constexpr TileHeight HEIGHT = int8_height();

    QuantisedRows x;
    const uint8_t* packed;
    const float* scales;
    float* y;
    Tiles tiles;
    int64_t quads, out;

    bool is_fetched_ahead(int rows) const { return rows > 2 || quads * STEP <= SHORT; }
    static constexpr int side_by_side(int rows) {
        if (TILE_PANELS == 1) return rows == 1 ? 3 : 1;
        return rows <= 2 ? 4 : rows <= 4 ? 3 : rows <= 6 ? 2 : 1;
    }

    // The MR rows of the tile at `row` times P panels from `first` on. AHEAD also fetches the following panels into the
    // second-level cache.
    template <int MR, int P, bool AHEAD> void multiply(int64_t row, int64_t first) const {
        constexpr int N = P * TILE_PANELS;
        Totals<MR, N> totals;
        const int64_t next = quads * STEP, groups = ceil_div(quads, GROUP_QUADS);
        const uint8_t* panel = packed + first * next;
        const uint32_t* levels = x.levels + row * quads * WORDS;
        const float* worth = x.worth + row * groups;
        const int32_t* row_sums = x.sums + row * groups;
        for (int64_t q = 0; q < quads; worth += MR, row_sums += MR) {
            Sums sums[MR][N];
#pragma GCC unroll 16
            for (int r = 0; r < MR; ++r)
#pragma GCC unroll 16
                for (int n = 0; n < N; ++n) sums[r][n] = all_sums(row_sums[r]);
            for (const int64_t last = std::min(quads, q + GROUP_QUADS); q < last; ++q, levels += MR * WORDS, panel += STEP) {
                if constexpr (AHEAD)
#pragma GCC unroll 16
                    for (int n = 0; n < N; ++n)
                        __builtin_prefetch(panel + (P + n / TILE_PANELS) * next + n % TILE_PANELS * QUAD_BYTES, 0, 2);
                step<0, MR, P>(panel, next, levels, sums);
                if constexpr (WORDS == 2) step<1, MR, P>(panel, next, levels, sums);
            }
#pragma GCC unroll 16
            for (int r = 0; r < MR; ++r) {
                const V16 level = in_register(set1(worth[r]));
#pragma GCC unroll 16
                for (int n = 0; n < N; ++n) totals.set(r, n, fma(to_floats(sums[r][n]), level, totals.get(r, n)));
            }
            totals.hide();
        }
        totals.put(y, out, row, first * WIDTH, scales);
    }
};

void pack_panel(const float* weight, int64_t outputs, int64_t in, uint8_t* packed, float* scales) {
    std::vector<int8_t> levels(size_t(ceil_div(in, LANES) * LANES));
    std::fill(packed, packed + quads_of(in) * STEP, uint8_t(OFFSET));
    for (int64_t lane = 0; lane < WIDTH; ++lane) {
        scales[lane] = 0.0f;
        if (lane >= outputs) continue;
        scales[lane] = quantise(weight + lane * in, in, levels.data());
        for (int64_t k = 0; k < in; ++k)
            packed[k / 4 * STEP + 4 * lane + k % 4] = uint8_t(levels[size_t(k)] + OFFSET);
    }
}

}  // namespace
}  // namespace ml

void ml::linear_int8(Pool* pool, const float* x, RowGroups groups, float* y, int64_t in, int64_t out) {
    const int64_t quads = quads_of(in);
    const RowForm form{in, quads, WORDS, -OFFSET};
    const QuantisedRows rows = quantise_rows(pool, x, groups, Product::HEIGHT, form);
    Division<Product>::run(pool, groups, form, panels_of(out), quads * 2 * WIDTH, [&](const RowGroup& own) {
        return Product{rows.from(own.first, form), levels_of(own.packed, out), scales_of(own.packed),
                       y + own.first * out, Tiles(own.rows, Product::HEIGHT), quads, out};
    });
}

void ml::embed_int8(
    Pool* pool, const int64_t* ids, const void* packed, float* y, int64_t count, int64_t in, int64_t out) {
    const float* scales = scales_of(packed);
    const uint8_t* levels = levels_of(packed, out);
    const int64_t chunks = chunks_for(count, count, 8, pool_threads(pool));
    parallel(pool, chunks, [&](int64_t chunk) {
        for (int64_t i = chunk_start(count, chunks, chunk); i < chunk_start(count, chunks, chunk + 1); ++i) {
            const uint8_t* from = levels + ids[i] / WIDTH * quads_of(in) * STEP + ids[i] % WIDTH * 4;
            for (int64_t k = 0; k < in; ++k)
                y[i * in + k] = float(int(from[k / 4 * STEP + k % 4]) - OFFSET) * scales[ids[i]];
        }
    });
}

extern "C" {

// Bytes of the packed form of an (out, in) weight.
int64_t ml_int8_packed_bytes(int64_t out, int64_t in) {
    using namespace ml;
    return panels_of(out) * (int64_t(WIDTH * sizeof(float)) + quads_of(in) * STEP);
}

// Packs rows [first, first + count) of an (out, in) weight, given as (count, in) float32; `first` is a multiple of 32.
void ml_int8_pack(
    ml::Pool* pool, const float* weight, void* packed, int64_t first, int64_t count, int64_t out, int64_t in) {
    using namespace ml;
    const int64_t panel = quads_of(in) * STEP;
    uint8_t* levels = levels_of(packed, out) + first / WIDTH * panel;
    float* scales = scales_of(packed) + first;
    parallel(pool, panels_of(count), [&](int64_t p) {
        int64_t row = p * WIDTH;
        pack_panel(weight + row * in, count - row, in, levels + p * panel, scales + row);
    });
}

}  // extern "C"
