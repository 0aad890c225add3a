// Linear layers with weights of four bits: y = x @ weight.T, a scale for each group of inputs of each output.
//
// A group is 32 inputs or a multiple of that; its weights are `scale * level + minimum`, the level in 0 .. 15. A symmetric
// weight has no minima: it is `scale * (level - 8)`. Rows of x have a scale for each block of 32 inputs. The sum of the
// products of a block's levels is an exact integer s, the sum t of the row's levels is another. Blocks are added in
// ascending order: y += (s * scale + t * minimum) * worth, the product t * minimum rounded first, then two fused
// multiply-adds; without minima s * scale, rounded, times worth.
//
// Packed layout: a `Head`; one float32 factor for each output, a power of two that brings its scales and minima into the
// range of float16; panels of TILE_PANELS times sixteen outputs. A panel holds for each group its scales and minima as
// float16, then blocks of 32 inputs: a byte of 64 * TILE_PANELS times four holds a level of quad j of inputs in its low
// half and the one of quad j + 4 in its high half, in the order of int8.cpp.

#include <cstring>

#include "products.h"
#include "quantised.h"

namespace ml {
namespace {

constexpr int64_t BLOCK = 32;                            // inputs
constexpr int64_t BLOCK_QUADS = BLOCK / 4;
static_assert(BLOCK_QUADS == GROUP_QUADS);
constexpr int32_t MIDDLE = 8;                            // the level of a symmetric zero
constexpr int64_t WIDTH = TILE_PANELS * LANES;           // outputs of a panel
constexpr int64_t STEP = TILE_PANELS * QUAD_BYTES;       // bytes of two quads of a panel
constexpr int64_t BLOCK_BYTES = BLOCK_QUADS / 2 * STEP;
#if defined(__AVX512F__)
constexpr int FINE_ROWS = 6;  // 6 x 2 sums of integers, 6 x 2 of floats
#else
constexpr int FINE_ROWS = 3;
#endif

struct Head {
    int64_t group;  // inputs
    int64_t has_minima;
    int64_t unused[6];
};
static_assert(sizeof(Head) == 64);

// The parts of a packed (out, in) weight.
struct Layout {
    int64_t in, out, group;
    bool has_minima;

    Layout(int64_t in, int64_t out, int64_t group, bool has_minima)
        : in(in), out(out), group(group), has_minima(has_minima) {}
    Layout(const void* packed, int64_t in, int64_t out)
        : Layout(in, out, static_cast<const Head*>(packed)->group, static_cast<const Head*>(packed)->has_minima != 0) {}

    int64_t panels() const { return ceil_div(out, WIDTH); }
    int64_t blocks() const { return ceil_div(in, BLOCK); }
    int64_t groups() const { return ceil_div(in, group); }
    int64_t scale_bytes() const { return WIDTH * int64_t(sizeof(fp16)) * (has_minima ? 2 : 1); }
    int64_t panel_bytes() const { return groups() * scale_bytes() + blocks() * BLOCK_BYTES; }
    int64_t first_panel() const { return int64_t(sizeof(Head)) + panels() * WIDTH * int64_t(sizeof(float)); }
    int64_t bytes() const { return first_panel() + panels() * panel_bytes(); }
    // Of group g, inside a panel.
    int64_t group_at(int64_t g) const { return g * (scale_bytes() + group / BLOCK * BLOCK_BYTES); }
};

const float* factors_of(const void* packed) {
    return reinterpret_cast<const float*>(static_cast<const uint8_t*>(packed) + sizeof(Head));
}

// Two quads of k, for every sum of the tile.
template <int MR, int P>
inline __attribute__((always_inline)) void step(
    const uint8_t* panel, int64_t next, const uint32_t* levels, Partial (&acc)[MR][P * TILE_PANELS]) {
    constexpr int N = P * TILE_PANELS;
    Quads both[N], weight[N];
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) {
        both[n] = load_nibbles(panel + n / TILE_PANELS * next + n % TILE_PANELS * QUAD_BYTES);
        weight[n] = low(both[n]);
    }
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r) {
        const One level = one_word(levels + r);
#pragma GCC unroll 16
        for (int n = 0; n < N; ++n) acc[r][n] = add_nibbles(acc[r][n], weight[n], level);
    }
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) weight[n] = high(both[n]);
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r) {
        const One level = one_word(levels + BLOCK_QUADS / 2 * MR + r);
#pragma GCC unroll 16
        for (int n = 0; n < N; ++n) acc[r][n] = add_nibbles(acc[r][n], weight[n], level);
    }
}

template <bool HAS_MINIMA> struct Product {
    static constexpr TileHeight HEIGHT{FINE_ROWS, FINE_ROWS};

    QuantisedRows x;
    const uint8_t* packed;
    float* y;
    Tiles tiles;
    Layout layout;

    bool is_fetched_ahead(int) const { return layout.panel_bytes() <= SHORT; }
    static constexpr int side_by_side(int rows) { return TILE_PANELS == 2 ? (rows == 1 ? 4 : rows <= 3 ? 2 : 1) : 1; }

    // The MR rows of the tile at `row` times P panels from `first` on. AHEAD also fetches the following panels into the
    // second-level cache.
    template <int MR, int P, bool AHEAD> void multiply(int64_t row, int64_t first) const {
        constexpr int N = P * TILE_PANELS;
        Totals<MR, N> totals;
        const int64_t next = layout.panel_bytes(), groups = layout.groups(), blocks = layout.blocks();
        const uint8_t* panel = packed + layout.first_panel() + first * next;
        const uint32_t* levels = x.levels + row * blocks * BLOCK_QUADS;
        const float* worth = x.worth + row * blocks;
        const int32_t* row_sums = x.sums + row * blocks;
        for (int64_t g = 0, block = 0; g < groups; ++g) {
            const uint8_t* head = panel;
            panel += layout.scale_bytes();
            const int64_t last = std::min(blocks, block + layout.group / BLOCK);
            for (; block < last; ++block, levels += BLOCK_QUADS * MR, worth += MR, row_sums += MR) {
                Partial part[MR][N];
#pragma GCC unroll 16
                for (int r = 0; r < MR; ++r)
#pragma GCC unroll 16
                    for (int n = 0; n < N; ++n) part[r][n] = begin(all_sums(HAS_MINIMA ? 0 : row_sums[r]));
                for (int64_t j = 0; j < BLOCK_QUADS / 2; ++j, panel += STEP) {
                    if constexpr (AHEAD)
#pragma GCC unroll 16
                        for (int n = 0; n < N; ++n)
                            __builtin_prefetch(panel + (P + n / TILE_PANELS) * next + n % TILE_PANELS * QUAD_BYTES, 0, 2);
                    step<MR, P>(panel, next, levels + j * MR, part);
                }
                add_block<MR, P>(head, next, worth, row_sums, part, totals);
                totals.hide();
            }
        }
        totals.put(y, layout.out, row, first * WIDTH, factors_of(packed));
    }

    template <int MR, int P>
    static inline __attribute__((always_inline)) void add_block(
        const uint8_t* head, int64_t next, const float* worth, const int32_t* row_sums,
        const Partial (&part)[MR][P * TILE_PANELS], Totals<MR, P * TILE_PANELS>& totals) {
#pragma GCC unroll 16
        for (int n = 0; n < P * TILE_PANELS; ++n) {
            const fp16* from = reinterpret_cast<const fp16*>(head + n / TILE_PANELS * next) + n % TILE_PANELS * LANES;
            const V16 scale = load_fp16(from);
            const V16 minimum = HAS_MINIMA ? load_fp16(from + WIDTH) : zero();
#pragma GCC unroll 16
            for (int r = 0; r < MR; ++r) {
                const Sums start = all_sums(HAS_MINIMA ? 0 : row_sums[r]);
                V16 sum = to_floats(end(start, part[r][n]));
                if constexpr (HAS_MINIMA) sum = fma(sum, scale, mul(set1(float(row_sums[r])), minimum));
                else sum = mul(sum, scale);
                totals.set(r, n, fma(sum, set1(worth[r]), totals.get(r, n)));
            }
        }
    }
};

// One weight without its output's factor.
float weight_at(const uint8_t* panel, const Layout& layout, int64_t lane, int64_t k) {
    const uint8_t* head = panel + layout.group_at(k / layout.group);
    const fp16* scales = reinterpret_cast<const fp16*>(head);
    const int64_t inside = k % layout.group, quad = inside % BLOCK / 4;
    const uint8_t byte = head[layout.scale_bytes() + inside / BLOCK * BLOCK_BYTES + quad % 4 * STEP + lane * 4 + k % 4];
    const int level = quad < 4 ? byte & 15 : byte >> 4;
    if (!layout.has_minima) return half_to_float(scales[lane]) * float(level - MIDDLE);
    return __builtin_fmaf(float(level), half_to_float(scales[lane]), half_to_float(scales[WIDTH + lane]));
}

// A weight as it is given: (out, blocks, 16) bytes, each with the level of input i of its block below and that of input
// i + 16 above, as a packed byte; (out, groups) scales and minima, or no minima.
struct Source {
    const uint8_t* pairs;
    const fp16 *scales, *minima;
};

void pack_panel(const Source& from, const Layout& layout, int64_t first, uint8_t* panel) {
    std::memset(panel, 0, size_t(layout.panel_bytes()));
    const int64_t groups = layout.groups(), blocks = layout.blocks(), lanes = std::min(WIDTH, layout.out - first);
    for (int64_t g = 0; g < groups; ++g) {
        uint8_t* head = panel + layout.group_at(g);
        fp16* scales = reinterpret_cast<fp16*>(head);
        const int64_t block0 = g * (layout.group / BLOCK), count = std::min(layout.group / BLOCK, blocks - block0);
        for (int64_t lane = 0; lane < lanes; ++lane) {
            const int64_t output = first + lane;
            scales[lane] = from.scales[output * groups + g];
            if (layout.has_minima) scales[WIDTH + lane] = from.minima[output * groups + g];
            const uint8_t* own = from.pairs + (output * blocks + block0) * (BLOCK / 2);
            uint8_t* to = head + layout.scale_bytes() + lane * 4;
            for (int64_t quad = 0; quad < count * BLOCK_QUADS / 2; ++quad) std::memcpy(to + quad * STEP, own + quad * 4, 4);
        }
    }
}

template <bool HAS_MINIMA>
void product(Pool* pool, const float* x, RowGroups groups, float* y, const Layout& layout) {
    const RowForm form{layout.in, layout.blocks() * BLOCK_QUADS, 1, HAS_MINIMA ? 1 : -MIDDLE};
    const QuantisedRows rows = quantise_rows(pool, x, groups, Product<HAS_MINIMA>::HEIGHT, form);
    const int64_t panel_cost = layout.blocks() * BLOCK * WIDTH / 2;
    Division<Product<HAS_MINIMA>>::run(pool, groups, form, layout.panels(), panel_cost, [&](const RowGroup& own) {
        return Product<HAS_MINIMA>{rows.from(own.first, form), static_cast<const uint8_t*>(own.packed),
                                   y + own.first * layout.out, Tiles(own.rows, Product<HAS_MINIMA>::HEIGHT), layout};
    });
}

}  // namespace
}  // namespace ml

void ml::linear_int4(Pool* pool, const float* x, RowGroups groups, float* y, int64_t in, int64_t out) {
    if (groups.rows == 0) return;
    const Layout layout(groups.groups->packed, in, out);  // all weights have one form
    if (layout.has_minima) product<true>(pool, x, groups, y, layout);
    else product<false>(pool, x, groups, y, layout);
}

void ml::embed_int4(
    Pool* pool, const int64_t* ids, const void* packed, float* y, int64_t count, int64_t in, int64_t out) {
    const Layout layout(packed, in, out);
    const int64_t chunks = chunks_for(count, count, 8, pool_threads(pool));
    parallel(pool, chunks, [&](int64_t chunk) {
        for (int64_t i = chunk_start(count, chunks, chunk); i < chunk_start(count, chunks, chunk + 1); ++i) {
            const int64_t panel = layout.first_panel() + ids[i] / WIDTH * layout.panel_bytes();
            const float factor = factors_of(packed)[ids[i]];
            for (int64_t k = 0; k < in; ++k)
                y[i * in + k] =
                    weight_at(static_cast<const uint8_t*>(packed) + panel, layout, ids[i] % WIDTH, k) * factor;
        }
    });
}

extern "C" {

// Bytes of the packed form of an (out, in) weight.
int64_t ml_int4_packed_bytes(int64_t out, int64_t in, int64_t group, int64_t has_minima) {
    return ml::Layout(in, out, group, has_minima != 0).bytes();
}

// Writes what lies before the panels, with factors of zero.
void ml_int4_begin(void* packed, int64_t out, int64_t in, int64_t group, int64_t has_minima) {
    using namespace ml;
    std::memset(packed, 0, size_t(Layout(in, out, group, has_minima != 0).first_panel()));
    *static_cast<Head*>(packed) = {group, has_minima, {}};
}

// Packs rows [first, first + count) after `ml_int4_begin`: pairs (count, blocks, 16) as `Source`; scales and minima
// (count, groups) float16 in units of the output's factor, minima null where the weight has none; factors (count,).
// `first` is a multiple of 32.
void ml_int4_pack(
    ml::Pool* pool, const uint8_t* pairs, const ml::fp16* scales, const ml::fp16* minima, const float* factors,
    void* packed, int64_t first, int64_t count, int64_t out, int64_t in) {
    using namespace ml;
    const Layout layout(packed, in, out);
    const Layout part(in, count, layout.group, layout.has_minima);
    uint8_t* data = static_cast<uint8_t*>(packed);
    std::memcpy(data + sizeof(Head) + first * int64_t(sizeof(float)), factors, size_t(count) * sizeof(float));
    uint8_t* to = data + layout.first_panel() + first / WIDTH * layout.panel_bytes();
    parallel(pool, part.panels(), [&](int64_t p) {
        pack_panel({pairs, scales, minima}, part, p * WIDTH, to + p * part.panel_bytes());
    });
}

}  // extern "C"
