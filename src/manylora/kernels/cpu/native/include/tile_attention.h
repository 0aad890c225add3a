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
#include "kv_forms.h"

namespace ml {

constexpr int64_t SEGMENT = 256;  // positions; a segment's keys and values of one head fit into a second-level cache
constexpr int64_t RUN = 64;  // positions; as many are fetched from memory while a run of them is computed

// Panels that are accumulated at once: as many as leave registers for their weights.
constexpr int MOST_PANELS = 2 * TILE_PANELS;
constexpr int MOST_WEIGHED = 4;  // queries that turn scores into weights side by side
constexpr int panels_for(int rows) { return rows < 3 * TILE_PANELS ? MOST_PANELS : TILE_PANELS; }

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
    int64_t run_blocks() const { return std::max<int64_t>(1, RUN / kv.block_size); }
    int64_t run_panels() const { return run_blocks() * kv.groups(); }
    // Places of the panels of keys and of the blocks of values of a segment, and of a run after each.
    int64_t key_places() const { return segment_blocks() * kv.groups() + run_panels(); }
    int64_t value_places() const { return segment_blocks() + run_blocks(); }
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

// Adds the products of the words of x with `lines` lines of each panel w, in order, and prefetches `next`, the panels that
// are read after these. A sequence's blocks lie anywhere, and each is too short for the processor's own prefetches: without
// explicit ones, decoding waits for every block.
template <class Form, int MR, int P>
inline __attribute__((always_inline)) void accumulate_and_fetch(
    WordRows<typename Form::Word, MR>& x, const bf16* const* __restrict w, const bf16* const* next, int64_t lines,
    V16 (&acc)[MR][P]) {
    constexpr int64_t LINE = Form::DEPTH * LANES;
    constexpr int FETCHED = 2 * LANES / LINE;  // lines of a cache line
    const bf16* panel[P];
    int64_t ahead[P];
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) panel[p] = w[p], ahead[p] = next[p] - w[p];
    int64_t k = 0;
    for (; k + FETCHED <= lines; k += FETCHED) {
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) __builtin_prefetch(panel[p] + ahead[p], 0, 2);
#pragma GCC unroll 2
        for (int i = 0; i < FETCHED; ++i) {
            Form::template step<MR, P>(x, panel, acc);
            x.advance(1);
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) panel[p] += LINE;
        }
    }
    if constexpr (FETCHED > 1)
        if (k < lines) Form::template step<MR, P>(x, panel, acc);
}

// One tile and one kv head. A query is one (row, head of the group) pair; query m is row m / group.
//
// Several heads of a tile may take turns, a run of positions each, because the keys of a block's heads lie side by side in
// memory, and so do its values. For each segment: `begin`, `follow`, `score` and `add_values` run by run, `softmax` between them.
template <class Form> class TileAttention {
   public:
    using Word = typename Form::Word;

    // Room for the words of the tile's queries and of their weights in a segment, the floats of their scores, and places.
    struct Room { Word *q, *weights; float* scores; const bf16 **keys, **values; };

    TileAttention(const AttentionCall& call, const Tile& tile, int64_t kv_head, Room room)
        : call_(call), kv_(call.kv), tile_(tile), kv_head_(kv_head), group_(call.group()), queries_(tile.rows * group_),
          width_(kv_.dim_panels() * LANES), stride_(call.score_stride()), room_(room) {
        first_block_ = call.first_position(tile.position) / kv_.block_size;
        end_block_ = (tile.position + tile.rows - 1) / kv_.block_size + 1;
        load_queries();
    }

    // Turns to a segment. False if no row reads it.
    bool begin(int64_t segment) {
        block0_ = first_of(segment);
        block1_ = std::min(end_block_, (segment + 1) * call_.segment_blocks());
        const bf16** key = room_.keys;
        for (int64_t i = 0; i < blocks(); ++i) {
            const int64_t block = tile_.blocks[block0_ + i];
            const bf16* panel = kv_.key_block(call_.layer, block, kv_head_);
            for (int64_t g = 0; g < kv_.groups(); ++g, panel += kv_.head_dim * LANES) *key++ = panel;
            room_.values[i] = kv_.value_block(call_.layer, block, kv_head_);
        }
        return block0_ < block1_;
    }

    // Blocks of the segment that the tile reads.
    int64_t blocks() const { return block1_ - block0_; }

    // Notes what is fetched meanwhile: the same places of the head `next`, which takes the next turn. If it is the first of
    // those that take turns, those of its next run: behind its keys its values, behind these the keys of the tile `after`.
    void follow(TileAttention& next, bool is_first, const TileAttention& after, int64_t segment) {
        next_keys_ = next.room_.keys + (is_first ? call_.run_panels() : 0);
        next_values_ = next.room_.values + (is_first ? call_.run_blocks() : 0);
        if (!is_first) return;
        const int64_t count = next.blocks();
        for (int64_t p = 0; p < call_.run_panels(); ++p)
            next.room_.keys[count * kv_.groups() + p] = next.room_.values[std::min(p / kv_.groups(), count - 1)];
        for (int64_t i = 0; i < call_.run_blocks(); ++i) next.room_.values[count + i] = after.first_keys(segment, i);
    }

    // The scores of blocks [block, end) of the segment. Every lane of every panel, written or not: lanes outside a row's
    // range are never read.
    void score(int64_t block, int64_t end) {
        const int64_t last = end * kv_.groups();
        for_row_tiles(queries_, [&](auto constant, int64_t m) {
            constexpr int MR = decltype(constant)::value;
            constexpr int P = panels_for(MR);
            int64_t panel = block * kv_.groups();
            for (; panel + P <= last; panel += P) score_panels<MR, P>(m, panel);
            for (; panel < last; ++panel) score_panels<MR, 1>(m, panel);
        });
    }

    // Turns the scores of the segment into weights, and clears the sums.
    void softmax(Sums out) {
        for (int64_t row = 0; row < tile_.rows; ++row)
            for (int64_t head = 0; head < group_; head += MOST_WEIGHED)
                with_rows<MOST_WEIGHED>(int(std::min<int64_t>(MOST_WEIGHED, group_ - head)), [&](auto constant) {
                    weigh<decltype(constant)::value>(row, row * group_ + head, out);
                });
        std::fill(out.sums, out.sums + queries_ * width_, 0.0f);
    }

    // Adds the values of blocks [block, end) of the segment: all rows at once where every row sees the whole block, else row
    // by row.
    void add_values(int64_t block, int64_t end, Sums out) {
        const int64_t size = kv_.block_size, seen = call_.first_position(tile_.position + tile_.rows - 1);
        block += block0_, end += block0_;
        int64_t whole0 = std::clamp((seen + size - 1) / size, block, end);
        const int64_t whole1 = std::max(whole0, std::clamp((tile_.position + 1) / size, block, end));
        add_edges(out, block, whole0);
        if (whole0 < whole1) add_blocks(out, whole0, whole1, {0, size}, 0, tile_.rows);
        add_edges(out, whole1, end);
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
                V16 value = mul(Form::join(load(all.sums + m * width_ + i)), inverse);
                if (i + LANES <= kv_.head_dim) store(to + i, value);
                else store_first(to + i, value, int(kv_.head_dim - i));
            }
        }
    }

   private:
    static constexpr int64_t DEPTH = Form::DEPTH;

    int64_t q_stride() const { return width_ / DEPTH; }

    float* query_row(Rows rows, int64_t m) const {
        return rows.row(tile_.row + m / group_) + (kv_head_ * group_ + m % group_) * kv_.head_dim;
    }

    void load_queries() {
        const V16 scale = set1(1.0f / std::sqrt(float(kv_.head_dim)));
        for (int64_t m = 0; m < queries_; ++m) {
            const float* from = query_row(call_.q, m);
            Word* to = room_.q + m * q_stride();
            for (int64_t i = 0; i < kv_.head_dim; i += LANES) {
                const int64_t count = std::min<int64_t>(LANES, kv_.head_dim - i);
                Form::put(to + i / DEPTH, mul(count == LANES ? load(from + i) : load_first(from + i, int(count)), scale));
            }
        }
    }

    int64_t first_of(int64_t segment) const { return std::max(first_block_, segment * call_.segment_blocks()); }

    // The keys of a block of a segment, counted from the first that the tile reads.
    const bf16* first_keys(int64_t segment, int64_t block) const {
        return kv_.key_block(call_.layer, tile_.blocks[std::min(first_of(segment) + block, end_block_ - 1)], kv_head_);
    }

    template <int MR, int P> void score_panels(int64_t m, int64_t panel) {
        V16 acc[MR][P];
        clear(acc);
        WordRows<Word, MR> q(room_.q + m * q_stride(), q_stride());
        accumulate_and_fetch<Form, MR, P>(q, room_.keys + panel, next_keys_ + panel, kv_.head_dim / DEPTH, acc);
        float* to = room_.scores + m * stride_ + panel * LANES;
#pragma GCC unroll 16
        for (int r = 0; r < MR; ++r)
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) store(to + r * stride_ + p * LANES, Form::join(acc[r][p]));
    }

    // Turns the scores of N queries of a row, from query m on, into weights exp(score - best), zero outside the row's range,
    // and keeps `best` and their total of each. Side by side they hide the latency of each other's steps.
    template <int N> void weigh(int64_t row, int64_t m, Sums out) {
        const int64_t position = tile_.position + row;
        const int64_t from = std::max(call_.first_position(position), block0_ * kv_.block_size);
        const int64_t to = std::min(position + 1, block1_ * kv_.block_size);
        const float* scores = room_.scores + m * stride_;
        Word* weights = room_.weights + m * stride_ / DEPTH;
        V16 best[N], top[N], sum[N];
#pragma GCC unroll 16
        for (int n = 0; n < N; ++n) best[n] = set1(-std::numeric_limits<float>::infinity()), sum[n] = zero();
        for_panels(from, to, [&](int64_t panel, Range lanes) {
#pragma GCC unroll 16
            for (int n = 0; n < N; ++n) {
                const V16 value = load(scores + n * stride_ + panel * LANES);
                best[n] = max(is_whole(lanes) ? value : select(int(lanes.lo), int(lanes.hi), value, best[n]), best[n]);
            }
        });
        for (int n = 0; n < N; ++n) out.best[m + n] = max_lanes(best[n]), top[n] = set1(out.best[m + n]);
        for_panels(from, to, [&](int64_t panel, Range lanes) {
#pragma GCC unroll 16
            for (int n = 0; n < N; ++n) {
                V16 value = Form::weight(sub(load(scores + n * stride_ + panel * LANES), top[n]));
                if (!is_whole(lanes)) value = select(int(lanes.lo), int(lanes.hi), value, zero());
                sum[n] = add(sum[n], Form::put(weights + (n * stride_ + panel * LANES) / DEPTH, value));
            }
        });
        for (int n = 0; n < N; ++n) out.total[m + n] = sum_lanes(sum[n]);
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

    void add_edges(Sums out, int64_t block, int64_t end) {
        for (; block < end; ++block)
            for (int64_t row = 0; row < tile_.rows; ++row) {
                const Range slots = slots_of(row, block);
                if (slots.lo < slots.hi) add_blocks(out, block, block + 1, slots, row, row + 1);
            }
    }

    // Adds the values in these slots of each block of [block, end) to rows [row0, row1).
    void add_blocks(Sums out, int64_t block, int64_t end, Range slots, int64_t row0, int64_t row1) {
        for_row_tiles((row1 - row0) * group_, [&](auto constant, int64_t m) {
            constexpr int MR = decltype(constant)::value;
            constexpr int P = panels_for(MR);
            m += row0 * group_;
            int64_t panel = 0;
            for (; panel + P <= kv_.dim_panels(); panel += P) sum_panels<MR, P>(out, m, panel, block, end, slots);
            for (; panel < kv_.dim_panels(); ++panel) sum_panels<MR, 1>(out, m, panel, block, end, slots);
        });
    }

    template <int MR, int P>
    void sum_panels(Sums out, int64_t m, int64_t panel, int64_t block, int64_t end, Range slots) {
        constexpr int64_t LINE = DEPTH * LANES;
        float* sums = out.sums + m * width_ + panel * LANES;
        V16 acc[MR][P];
#pragma GCC unroll 16
        for (int r = 0; r < MR; ++r)
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) acc[r][p] = load(sums + r * width_ + p * LANES);
        const int64_t size = kv_.value_panel(), words = kv_.groups() * LANES / DEPTH;
        const int64_t first = slots.lo / DEPTH, line = (slots.lo + DEPTH - 1) / DEPTH, lines = slots.hi / DEPTH - line;
        const Word* weight = room_.weights + m * stride_ / DEPTH + (block - block0_) * words;
        for (int64_t i = block - block0_; i < end - block0_; ++i, weight += words) {
            const bf16 *panels[P], *next[P];
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) {
                const int64_t at = (panel + p) * size + line * LINE;
                panels[p] = room_.values[i] + at, next[p] = next_values_[i] + at;
            }
            if (first < line) half_line<MR, P>(weight + first, panels, -LINE, false, acc);
            WordRows<Word, MR> x(weight + line, stride_ / DEPTH);
            accumulate_and_fetch<Form, MR, P>(x, panels, next, lines, acc);
            if (slots.hi % DEPTH) half_line<MR, P>(weight + line + lines, panels, lines * LINE, true, acc);
        }
#pragma GCC unroll 16
        for (int r = 0; r < MR; ++r)
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) store(sums + r * width_ + p * LANES, acc[r][p]);
    }

    // Adds the first or the second numbers of the lines `at` elements after the panels.
    template <int MR, int P>
    inline __attribute__((always_inline)) void half_line(
        const Word* weight, const bf16* const* panels, int64_t at, bool is_first, V16 (&acc)[MR][P]) {
        if constexpr (DEPTH == 2) {
            const bf16* own[P];
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) own[p] = panels[p] + at;
            Form::template half_step<MR, P>(WordRows<Word, MR>(weight, stride_ / DEPTH), own, is_first, acc);
        }
    }

    const AttentionCall& call_;
    const Kv& kv_;
    const Tile& tile_;
    int64_t kv_head_, group_, queries_;
    int64_t width_, stride_;            // floats of a query in sums and in scores
    int64_t first_block_, end_block_;   // the tile reads blocks [first_block_, end_block_) of its sequence
    int64_t block0_ = 0, block1_ = 0;   // those of the segment at hand
    Room room_;
    const bf16 *const *next_keys_ = nullptr, *const *next_values_ = nullptr;
};

}  // namespace ml
