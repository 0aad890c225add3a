// Linear layers with int8 weights: y = x @ weight.T, one scale for each output and one for each row of x.
//
// Packed layout: panels of sixteen outputs; panel p holds, for each pair of inputs (k, k + 1), the two weights of output
// 16 p, of output 16 p + 1, ... side by side: 32 bytes. Missing outputs and the second half of an odd pair are zeros.
// The scales of all outputs lie before the first panel, so that one address is enough.
//
// Weights are widened to int16 once for all rows of a tile. The multiplier takes int16 from both sides, so that x may have
// far more than 127 levels at no cost: as many as the int32 sum can hold in the worst case (`levels_for`).

#include <cstddef>
#include <limits>
#include <vector>

#include "integers.h"
#include "products.h"
#include "slices.h"
#include "tile.h"

namespace ml {
namespace {

constexpr int WEIGHT_LEVELS = 127;
constexpr int64_t PAIR_BYTES = 2 * LANES;
constexpr float SMALLEST = 1e-30f;  // below it a row counts as zeros: levels / largest would not be finite

int64_t pairs_of(int64_t in) { return (in + 1) / 2; }
int64_t panels_of(int64_t out) { return (out + LANES - 1) / LANES; }

// The parts of a packed (out, in) weight: (panels * 16,) float32 scales of the outputs, then the panels.
float* scales_of(void* packed) { return static_cast<float*>(packed); }
const float* scales_of(const void* packed) { return static_cast<const float*>(packed); }
int8_t* panels_at(void* packed, int64_t out) {
    return reinterpret_cast<int8_t*>(scales_of(packed) + panels_of(out) * LANES);
}
const int8_t* panels_at(const void* packed, int64_t out) {
    return reinterpret_cast<const int8_t*>(scales_of(packed) + panels_of(out) * LANES);
}

int levels_for(int64_t in) {
    return int(std::min<int64_t>(32767, std::numeric_limits<int32_t>::max() / (WEIGHT_LEVELS * in)));
}

// Elements from one quantised row to the next: a line more than needed, so that rows whose length is a power of two do
// not all fall into the same set of the first-level cache.
int64_t row_stride(int64_t in) { return (in + 31) / 32 * 32 + 32; }

// to[k] = round(x[k] * levels / largest |x|), zeros up to the next multiple of 16. Returns the scale, the value of
// one level. A row that holds a NaN or an infinity becomes zeros of the scale NaN.
float quantise(const float* x, int64_t in, int levels, int16_t* to) {
    auto get = [&](int64_t k) { return k + LANES <= in ? load(x + k) : load_first(x + k, int(in - k)); };
    V16 most = zero(), finite = zero();
    for (int64_t k = 0; k < in; k += LANES) {
        V16 value = get(k);
        most = max(most, max(value, sub(zero(), value)));
        finite = fma(value, zero(), finite);  // 0 * x is 0, or NaN for a NaN and an infinity
    }
    const float largest = max_lanes(most);
    const bool is_finite = sum_lanes(finite) == 0.0f;
    if (!is_finite || largest < SMALLEST) {
        std::fill(to, to + (in + LANES - 1) / LANES * LANES, int16_t(0));
        return is_finite ? 0.0f : std::numeric_limits<float>::quiet_NaN();
    }
    const V16 factor = set1(float(levels) / largest);
    for (int64_t k = 0; k < in; k += LANES) round_store(to + k, mul(get(k), factor));
    return largest / float(levels);
}

struct Product {
    const int16_t* x;      // (rows, stride), quantised
    const float* worth;    // (rows,) of one level of x
    const int8_t* packed;
    const float* scales;   // (panels * 16,) of one level of a weight
    float* y;
    int64_t rows, stride, pairs, out;

    const int8_t* panel(int64_t p) const { return packed + p * pairs * PAIR_BYTES; }

    // Between two pieces of k the memory of the result holds the sums, as integers.
    Sums resume(int64_t row, int64_t panel) const {
        int64_t column = panel * LANES;
        const int32_t* from = reinterpret_cast<const int32_t*>(y + row * out + column);
        return column + LANES <= out ? load_sums(from) : load_first(from, int(out - column));
    }
    void keep(int64_t row, int64_t panel, Sums sums) const {
        int64_t column = panel * LANES;
        int32_t* to = reinterpret_cast<int32_t*>(y + row * out + column);
        if (column + LANES <= out) store(to, sums);
        else store_first(to, sums, int(out - column));
    }
    void put(int64_t row, int64_t panel, Sums sums) const {
        int64_t column = panel * LANES;
        V16 value = mul(to_floats(sums), mul(set1(worth[row]), load(scales + column)));
        float* to = y + row * out + column;
        if (column + LANES <= out) store(to, value);
        else store_first(to, value, int(out - column));
    }
};

// One pair of k: every sum of the tile gets one multiplication of pairs.
template <int MR, int P>
inline __attribute__((always_inline)) void step(
    const int16_t* __restrict x, int64_t stride, const int8_t* const* panel, Sums (&acc)[MR][P]) {
    Pairs weight[P];
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) weight[p] = load_pairs(panel[p]);
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r) {
        Pairs value = one_pair(x + r * stride);
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) acc[r][p] = add_products(acc[r][p], weight[p], value);
    }
}

// Rows [row, row + MR) times panels [first, first + P) over pairs [k0, k1). AHEAD fetches the panels that follow these.
template <int MR, int P, bool AHEAD>
void multiply(const Product& job, int64_t row, int64_t first, int64_t k0, int64_t k1) {
    const int8_t* panel[P];
    for (int p = 0; p < P; ++p) panel[p] = job.panel(first + p) + k0 * PAIR_BYTES;
    Sums acc[MR][P];
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) acc[r][p] = k0 == 0 ? no_sums() : job.resume(row + r, first + p);
    const int16_t* x = job.x + row * job.stride + 2 * k0;
    const int64_t ahead = P * job.pairs * PAIR_BYTES;
    int64_t k = k0;
    for (; k + 2 <= k1; k += 2) {
        if constexpr (AHEAD)
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) __builtin_prefetch(panel[p] + ahead, 0, 2);
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i, x += 2) {
            step<MR, P>(x, job.stride, panel, acc);
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) panel[p] += PAIR_BYTES;
        }
    }
    if (k < k1) step<MR, P>(x, job.stride, panel, acc);
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p)
            if (k1 == job.pairs) job.put(row + r, first + p, acc[r][p]);
            else job.keep(row + r, first + p, acc[r][p]);
}

// Few rows: the weights stream from memory once; see `stream` in linear.cpp.
template <int MR> constexpr int stream_panels = MR == 1 ? 4 : MR == 2 ? 2 : 1;

template <int MR> void stream(const Product& job, int64_t first, int64_t last) {
    constexpr int P = stream_panels<MR>;
    int64_t p = first;
    for (; p + P <= last; p += P) multiply<MR, P, (MR > 1)>(job, 0, p, 0, job.pairs);
    for (; p < last; ++p) multiply<MR, 1, (MR > 1)>(job, 0, p, 0, job.pairs);
}

// Many rows: a piece of a panel and of a tile of rows stay in a first-level cache of 32 KB.
void block(const Product& job, int64_t row0, int64_t row1, int64_t first, int64_t last) {
    constexpr int64_t DEPTH = (16 << 10) / (PAIR_BYTES * TILE_PANELS);
    const int64_t pieces = (job.pairs + DEPTH - 1) / DEPTH;
    for (int64_t piece = 0; piece < pieces; ++piece) {
        const int64_t k0 = chunk_start(job.pairs, pieces, piece), k1 = chunk_start(job.pairs, pieces, piece + 1);
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

// The quantised rows of this thread's current call; the memory grows to the largest step and is kept.
struct Scratch {
    std::vector<int16_t> x;
    std::vector<float> worth;
};

void product(Pool* pool, const Scratch& rows, RowGroups groups, float* y, int64_t in, int64_t out) {
    const int64_t stride = row_stride(in), pairs = pairs_of(in);
    // Rows of x that stay in a second-level cache of 512 KB beside the panel.
    const int64_t block_rows = std::max<int64_t>(TILE_ROWS, (256 << 10) / (2 * stride) / TILE_ROWS * TILE_ROWS);
    auto slices_of = [&](int64_t count) {
        const int64_t group = count == 1 ? stream_panels<1> : count == 2 ? stream_panels<2> : TILE_PANELS;
        return Slices(count, panels_of(out), block_rows, group, pairs * LANES, pool_threads(pool));
    };
    for_slices(pool, groups, slices_of, [&](const RowGroup& own, int64_t row0, int64_t row1, int64_t first, int64_t last) {
        const Product job{rows.x.data() + own.first * stride, rows.worth.data() + own.first,
                          panels_at(own.packed, out), scales_of(own.packed), y + own.first * out, own.rows, stride,
                          pairs, out};
        switch (job.rows) {
            case 1: return stream<1>(job, first, last);
            case 2: return stream<2>(job, first, last);
            case 3: return stream<3>(job, first, last);
            default: return block(job, row0, row1, first, last);
        }
    });
}

Scratch& quantise_rows(Pool* pool, const float* x, int64_t rows, int64_t in) {
    thread_local Scratch scratch;
    const int64_t stride = row_stride(in);
    if (int64_t(scratch.x.size()) < rows * stride) scratch.x.resize(size_t(rows * stride));
    if (int64_t(scratch.worth.size()) < rows) scratch.worth.resize(size_t(rows));
    Scratch& mine = scratch;  // the pool's threads must write here and not into scratch of their own
    const int levels = levels_for(in);
    const int64_t chunks = chunks_for(rows, rows * in, 1 << 15, pool_threads(pool));
    parallel(pool, chunks, [&](int64_t chunk) {
        for (int64_t row = chunk_start(rows, chunks, chunk); row < chunk_start(rows, chunks, chunk + 1); ++row)
            mine.worth[size_t(row)] = quantise(x + row * in, in, levels, mine.x.data() + row * stride);
    });
    return scratch;
}

void pack_panel(const float* weight, int64_t outputs, int64_t in, int8_t* packed, float* scales) {
    std::vector<int16_t> levels(size_t(row_stride(in)));
    std::fill(packed, packed + pairs_of(in) * PAIR_BYTES, int8_t(0));
    for (int64_t lane = 0; lane < LANES; ++lane) {
        scales[lane] = 0.0f;
        if (lane >= outputs) continue;
        scales[lane] = quantise(weight + lane * in, in, WEIGHT_LEVELS, levels.data());
        for (int64_t k = 0; k < in; ++k)
            packed[k / 2 * PAIR_BYTES + 2 * lane + k % 2] = int8_t(levels[size_t(k)]);
    }
}

}  // namespace
}  // namespace ml

void ml::linear_int8(Pool* pool, const float* x, RowGroups groups, float* y, int64_t in, int64_t out) {
    product(pool, quantise_rows(pool, x, groups.rows, in), groups, y, in, out);
}

void ml::embed_int8(
    Pool* pool, const int64_t* ids, const void* packed, float* y, int64_t count, int64_t in, int64_t out) {
    const float* scales = scales_of(packed);
    const int8_t* panels = panels_at(packed, out);
    const int64_t chunks = chunks_for(count, count, 8, pool_threads(pool));
    parallel(pool, chunks, [&](int64_t chunk) {
        for (int64_t i = chunk_start(count, chunks, chunk); i < chunk_start(count, chunks, chunk + 1); ++i) {
            const int8_t* from = panels + ids[i] / LANES * pairs_of(in) * PAIR_BYTES + ids[i] % LANES * 2;
            for (int64_t k = 0; k < in; ++k)
                y[i * in + k] = float(from[k / 2 * PAIR_BYTES + k % 2]) * scales[ids[i]];
        }
    });
}

extern "C" {

// Bytes of the packed form of an (out, in) weight.
int64_t ml_int8_packed_bytes(int64_t out, int64_t in) {
    using namespace ml;
    return panels_of(out) * (int64_t(LANES * sizeof(float)) + pairs_of(in) * PAIR_BYTES);
}

// Packs rows [first, first + count) of an (out, in) weight, given as (count, in) float32; `first` is a multiple of 16.
void ml_int8_pack(
    ml::Pool* pool, const float* weight, void* packed, int64_t first, int64_t count, int64_t out, int64_t in) {
    using namespace ml;
    int8_t* panels = panels_at(packed, out) + first / LANES * pairs_of(in) * PAIR_BYTES;
    float* scales = scales_of(packed) + first;
    parallel(pool, panels_of(count), [&](int64_t p) {
        int64_t row = p * LANES;
        pack_panel(weight + row * in, count - row, in, panels + p * pairs_of(in) * PAIR_BYTES, scales + row);
    });
}

}  // extern "C"
