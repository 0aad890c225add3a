// Attention of one tile of queries over one segment of its context, and the merge of segments.
//
// A segment is a fixed stretch of absolute positions. Within it a row's scores, sum and outputs are accumulated over
// its own positions in ascending order, relative to the segment's best score. So a row has the same bits in every tile.
//
// Source: the merge of partial softmax sums: online softmax (Milakov and Gimelshein, arXiv 1805.02867).
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "arguments.h"
#include "kv.h"
#include "tile.h"

namespace ml {

constexpr int64_t SEGMENT = 256;  // positions; a segment's keys and values of one head fit into a second-level cache
constexpr int64_t FETCHED_AHEAD = 64;  // positions; their values are fetched from memory while as many are added

// Panels that are accumulated at once: as many as leave registers for their weights.
constexpr int panels_for(int rows) { return rows < 3 * TILE_PANELS ? 2 * TILE_PANELS : TILE_PANELS; }

// The arguments of `attend`.
struct AttentionCall {
    const Kv& kv;
    int64_t layer, window;  // window 0: none
    Rows q, out;
    const AttentionBatch& batch;

    int64_t group() const { return q.width / kv.head_dim / kv.kv_heads; }
    int64_t first_position(int64_t position) const {
        return window > 0 ? std::max<int64_t>(0, position - window + 1) : 0;
    }
    int64_t segment_blocks() const { return std::max<int64_t>(1, SEGMENT / kv.block_size); }
    int64_t score_stride() const { return segment_blocks() * kv.groups() * LANES; }
    int64_t segment_of(int64_t position) const { return position / kv.block_size / segment_blocks(); }
};

// Consecutive positions of one sequence, which read the same keys.
struct Tile { int64_t row, rows, position; const int32_t* blocks; };

// The valid lanes of a panel, or slots of a block: [lo, hi).
struct Range {
    int64_t lo, hi;
    bool operator==(const Range& other) const { return lo == other.lo && hi == other.hi; }
};

inline Range overlap(int64_t from, int64_t to, int64_t base, int64_t size) {
    return {std::clamp<int64_t>(from - base, 0, size), std::clamp<int64_t>(to - base, 0, size)};
}

// Sums over some positions of each query of a tile: `sums` (queries, width) in split order, and their weights' `total`,
// both relative to exp(best).
struct Sums {
    float *sums, *best, *total;

    static int64_t size(int64_t queries, int64_t width) { return queries * (width + 2); }
    static Sums at(float* memory, int64_t queries, int64_t width) {
        return {memory, memory + queries * width, memory + queries * (width + 1)};
    }
};

// acc[r][p] += x[r * ldx + k] * w[p][k * LANES + lane], k = 0 .. count - 1 in order, in split order. It prefetches
// `next`, the panels that are read after these. A sequence's blocks lie anywhere, and each is too short for the
// processor's own prefetches: without explicit ones, decoding waits for every block.
template <int MR, int P>
inline __attribute__((always_inline)) void accumulate_and_fetch(
    const float* __restrict x, int64_t ldx, const bf16* const* __restrict w, const bf16* const* next, int64_t count,
    V16 (&acc)[MR][P]) {
    const bf16* panel[P];
    int64_t ahead[P];
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) panel[p] = w[p], ahead[p] = next[p] - w[p];
    int64_t k = 0;
    for (; k + 2 <= count; k += 2) {
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) __builtin_prefetch(panel[p] + ahead[p], 0, 2);
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) {
            step<bf16, MR, P>(x + k + i, ldx, panel, acc);
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) panel[p] += LANES;
        }
    }
    if (k < count) step<bf16, MR, P>(x + k, ldx, panel, acc);
}

// One tile and one kv head. A query is one (row, head of the group) pair; query m is row m / group.
class TileAttention {
   public:
    TileAttention(const AttentionCall& call, const Tile& tile, int64_t kv_head, float* q, float* scores)
        : call_(call), kv_(call.kv), tile_(tile), kv_head_(kv_head), group_(call.group()), queries_(tile.rows * group_),
          width_(kv_.dim_panels() * LANES), stride_(call.score_stride()), q_(q), scores_(scores) {
        first_block_ = call.first_position(tile.position) / kv_.block_size;
        end_block_ = (tile.position + tile.rows - 1) / kv_.block_size + 1;
        load_queries();
    }

    // Writes the sums over the positions of a segment. False, and nothing is written, if no row reads it.
    bool sum(int64_t segment, Sums out) {
        block0_ = std::max(first_block_, segment * call_.segment_blocks());
        block1_ = std::min(end_block_, (segment + 1) * call_.segment_blocks());
        if (block0_ >= block1_) return false;
        score();
        for (int64_t m = 0; m < queries_; ++m) softmax(m, out);
        std::fill(out.sums, out.sums + queries_ * width_, 0.0f);
        add_values(out);
        return true;
    }

    // Adds `part`, the sums of a segment, to the sums of all segments before it.
    void merge(int64_t segment, Sums part, Sums all) const {
        for (int64_t m = 0; m < queries_; ++m) {
            const int64_t position = tile_.position + m / group_, first = call_.first_position(position);
            if (segment < call_.segment_of(first) || segment > call_.segment_of(position)) continue;
            const float* from = part.sums + m * width_;
            float* to = all.sums + m * width_;
            if (segment == call_.segment_of(first)) {
                std::copy(from, from + width_, to);
                all.best[m] = part.best[m], all.total[m] = part.total[m];
                continue;
            }
            const bool is_better = part.best[m] > all.best[m];
            const V16 factor = exp(set1(is_better ? all.best[m] - part.best[m] : part.best[m] - all.best[m]));
            auto joined = [&](V16 before, V16 after) {
                return is_better ? fma(before, factor, after) : fma(after, factor, before);
            };
            for (int64_t i = 0; i < width_; i += LANES) store(to + i, joined(load(to + i), load(from + i)));
            float total[LANES];
            store(total, joined(set1(all.total[m]), set1(part.total[m])));
            all.total[m] = total[0];
            if (is_better) all.best[m] = part.best[m];
        }
    }

    void write(Sums all) const {
        for (int64_t m = 0; m < queries_; ++m) {
            float* to = query_row(call_.out, m);
            const V16 inverse = set1(1.0f / all.total[m]);
            for (int64_t i = 0; i < kv_.head_dim; i += LANES) {
                V16 value = mul(join<bf16>(load(all.sums + m * width_ + i)), inverse);
                if (i + LANES <= kv_.head_dim) store(to + i, value);
                else store_first(to + i, value, int(kv_.head_dim - i));
            }
        }
    }

   private:
    float* query_row(Rows rows, int64_t m) const {
        return rows.row(tile_.row + m / group_) + (kv_head_ * group_ + m % group_) * kv_.head_dim;
    }

    void load_queries() {
        const float scale = 1.0f / std::sqrt(float(kv_.head_dim));
        for (int64_t m = 0; m < queries_; ++m) {
            const float* from = query_row(call_.q, m);
            for (int64_t i = 0; i < kv_.head_dim; ++i) q_[m * kv_.head_dim + i] = from[i] * scale;
        }
    }

    // Panels of keys are numbered from `block0_` on.
    const bf16* key_panel(int64_t panel) const {
        return kv_.key_block(call_.layer, tile_.blocks[block0_ + panel / kv_.groups()], kv_head_) +
               panel % kv_.groups() * kv_.head_dim * LANES;
    }

    const bf16* value_block(int64_t block) const {
        return kv_.value_block(call_.layer, tile_.blocks[block], kv_head_);
    }

    // The places that are prefetched: after the last panel of keys the values, after these the next segment's keys.
    const bf16* key_panel_or_after(int64_t panel) const {
        const int64_t panels = (block1_ - block0_) * kv_.groups();
        if (panel < panels) return key_panel(panel);
        return value_block(std::min(block0_ + (panel - panels) / kv_.groups(), block1_ - 1));
    }
    const bf16* value_block_or_after(int64_t block) const {
        if (block < block1_) return value_block(block);
        return kv_.key_block(call_.layer, tile_.blocks[std::min(block, end_block_ - 1)], kv_head_);
    }

    template <int MR, int P> void score_panels(int64_t m, int64_t panel) {
        const bf16 *panels[P], *next[P];
        for (int p = 0; p < P; ++p) panels[p] = key_panel(panel + p), next[p] = key_panel_or_after(panel + P + p);
        V16 acc[MR][P];
        clear(acc);
        accumulate_and_fetch<MR, P>(q_ + m * kv_.head_dim, kv_.head_dim, panels, next, kv_.head_dim, acc);
        for (int r = 0; r < MR; ++r)
            for (int p = 0; p < P; ++p) store(scores_ + (m + r) * stride_ + (panel + p) * LANES, join<bf16>(acc[r][p]));
    }

    // Every lane of every panel, written or not: lanes outside a row's range are never read.
    void score() {
        const int64_t panels = (block1_ - block0_) * kv_.groups();
        for_row_tiles(queries_, [&](auto constant, int64_t m) {
            constexpr int MR = decltype(constant)::value;
            constexpr int P = panels_for(MR);
            int64_t panel = 0;
            for (; panel + P <= panels; panel += P) score_panels<MR, P>(m, panel);
            for (; panel < panels; ++panel) score_panels<MR, 1>(m, panel);
        });
    }

    // Turns query m's scores into exp(score - best), zero outside the row's range, and keeps `best` and their total.
    void softmax(int64_t m, Sums out) {
        const int64_t position = tile_.position + m / group_;
        const int64_t from = std::max(call_.first_position(position), block0_ * kv_.block_size);
        const int64_t to = std::min(position + 1, block1_ * kv_.block_size);
        float* scores = scores_ + m * stride_;
        V16 best = set1(-std::numeric_limits<float>::infinity()), sum = zero();
        for_panels(from, to, [&](int64_t panel, Range lanes) {
            V16 value = load(scores + panel * LANES);
            best = max(is_whole(lanes) ? value : select(int(lanes.lo), int(lanes.hi), value, best), best);
        });
        const V16 top = set1(max_lanes(best));
        for_panels(from, to, [&](int64_t panel, Range lanes) {
            V16 value = exp(sub(load(scores + panel * LANES), top));
            if (!is_whole(lanes)) value = select(int(lanes.lo), int(lanes.hi), value, zero());
            store(scores + panel * LANES, value);
            sum = add(sum, value);
        });
        out.best[m] = max_lanes(best);
        out.total[m] = sum_lanes(sum);
    }

    static bool is_whole(Range lanes) { return lanes.lo == 0 && lanes.hi == LANES; }

    // f(panel, lanes) for each panel that holds positions of [from, to), ascending.
    template <class F> void for_panels(int64_t from, int64_t to, F&& f) const {
        const int64_t size = kv_.block_size;
        for (int64_t block = from / size; block * size < to; ++block) {
            const bool is_inside = from <= block * size && (block + 1) * size <= to;
            for (int64_t g = 0; g < kv_.groups(); ++g) {
                const int64_t panel = (block - block0_) * kv_.groups() + g, base = g * LANES;
                if (is_inside && base + LANES <= size) {
                    f(panel, Range{0, LANES});
                    continue;
                }
                Range lanes = overlap(from, to, block * size + base, std::min<int64_t>(LANES, size - base));
                if (lanes.lo < lanes.hi) f(panel, lanes);
            }
        }
    }

    Range slots_of(int64_t row, int64_t block) const {
        int64_t position = tile_.position + row;
        return overlap(call_.first_position(position), position + 1, block * kv_.block_size, kv_.block_size);
    }

    // Adds the values of the segment's blocks: all rows at once where they use the same slots, else row by row.
    void add_values(Sums out) {
        for (int64_t block = block0_; block < block1_;) {
            int64_t end = block;
            while (end < block1_ && slots_of(0, end) == slots_of(tile_.rows - 1, end)) ++end;
            if (end > block) {
                add_blocks(out, block, end, 0, tile_.rows);
                block = end;
                continue;
            }
            for (int64_t row = 0; row < tile_.rows; ++row) add_blocks(out, block, block + 1, row, row + 1);
            ++block;
        }
    }

    // Adds the values of blocks [block, end) to rows [row0, row1), which use the same slots of each.
    void add_blocks(Sums out, int64_t block, int64_t end, int64_t row0, int64_t row1) {
        for_row_tiles((row1 - row0) * group_, [&](auto constant, int64_t m) {
            constexpr int MR = decltype(constant)::value;
            constexpr int P = panels_for(MR);
            int64_t panel = 0;
            for (; panel + P <= kv_.dim_panels(); panel += P) sum_panels<MR, P>(out, row0, m, panel, block, end);
            for (; panel < kv_.dim_panels(); ++panel) sum_panels<MR, 1>(out, row0, m, panel, block, end);
        });
    }

    template <int MR, int P>
    void sum_panels(Sums out, int64_t row, int64_t m, int64_t panel, int64_t block, int64_t end) {
        m += row * group_;
        float* sums = out.sums + m * width_ + panel * LANES;
        V16 acc[MR][P];
#pragma GCC unroll 16
        for (int r = 0; r < MR; ++r)
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) acc[r][p] = load(sums + r * width_ + p * LANES);
        const int64_t ahead = std::max<int64_t>(1, FETCHED_AHEAD / kv_.block_size);
        for (; block < end; ++block) {
            const Range slots = slots_of(row, block);
            const bf16 *panels[P], *next[P];
            for (int p = 0; p < P; ++p) {
                const int64_t at = ((panel + p) * kv_.block_size + slots.lo) * LANES;
                panels[p] = value_block(block) + at, next[p] = value_block_or_after(block + ahead) + at;
            }
            const float* weights = scores_ + m * stride_ + (block - block0_) * kv_.groups() * LANES + slots.lo;
            accumulate_and_fetch<MR, P>(weights, stride_, panels, next, slots.hi - slots.lo, acc);
        }
#pragma GCC unroll 16
        for (int r = 0; r < MR; ++r)
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) store(sums + r * width_ + p * LANES, acc[r][p]);
    }

    const AttentionCall& call_;
    const Kv& kv_;
    const Tile& tile_;
    int64_t kv_head_, group_, queries_;
    int64_t width_, stride_;            // floats per query in sums and in scores_
    int64_t first_block_, end_block_;   // the tile reads blocks [first_block_, end_block_) of its sequence
    int64_t block0_ = 0, block1_ = 0;   // those of the segment at hand
    float *q_, *scores_;
};

}  // namespace ml
