// Paged attention with grouped heads: rotary embedding, the write of keys and values, and the softmax-weighted sum.
//
// Layout, for each layer, block and kv head, in bfloat16:
//   keys    (slots / 16, head_dim, 16)   sixteen positions side by side: a score panel is a product over head_dim
//   values  (head_dim / 16, slots, 16)   sixteen dimensions side by side: an output panel is a product over positions
// with slots and head_dim rounded up to sixteen where they are a panel's lanes. Both products use the kernel of tile.h.
//
// A row's scores, sum and outputs are accumulated over its own positions in ascending order, in panels at absolute
// positions. Rows of one sequence share a tile for speed alone.

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "operations.h"
#include "pool.h"
#include "tile.h"

namespace ml {

struct Kv : KvLayout {
    int64_t groups() const { return (block_size + LANES - 1) / LANES; }
    int64_t dim_panels() const { return (head_dim + LANES - 1) / LANES; }
    int64_t key_elements() const { return groups() * LANES * head_dim; }
    int64_t value_elements() const { return dim_panels() * LANES * block_size; }
    bf16* key_block(int64_t layer, int64_t block, int64_t head) const {
        return keys + ((layer * num_blocks + block) * kv_heads + head) * key_elements();
    }
    bf16* value_block(int64_t layer, int64_t block, int64_t head) const {
        return values + ((layer * num_blocks + block) * kv_heads + head) * value_elements();
    }
};

namespace {

// The arguments of `attend`.
struct Call {
    const Kv& kv;
    int64_t layer, window;  // window 0: none
    Rows q, out;
    const AttentionBatch& batch;

    int64_t group() const { return q.width / kv.head_dim / kv.kv_heads; }
    int64_t first_position(int64_t position) const {
        return window > 0 ? std::max<int64_t>(0, position - window + 1) : 0;
    }
};

// Consecutive positions of one sequence, which read the same keys.
struct Tile { int64_t row, rows, position; const int32_t* blocks; };

// The valid lanes of a panel, or slots of a block: [lo, hi).
struct Range {
    int64_t lo, hi;
    bool operator==(const Range& other) const { return lo == other.lo && hi == other.hi; }
};

Range overlap(int64_t from, int64_t to, int64_t base, int64_t size) {
    return {std::clamp<int64_t>(from - base, 0, size), std::clamp<int64_t>(to - base, 0, size)};
}

// One tile and one kv head. A query is one (row, head of the group) pair; query m is row m / group.
class TileAttention {
   public:
    TileAttention(const Call& call, const Tile& tile, int64_t kv_head, std::vector<float>& scratch)
        : call_(call), kv_(call.kv), tile_(tile), kv_head_(kv_head), group_(call.group()), queries_(tile.rows * group_) {
        block0_ = call.first_position(tile.position) / kv_.block_size;
        block1_ = (tile.position + tile.rows - 1) / kv_.block_size + 1;
        stride_ = (block1_ - block0_) * kv_.groups() * LANES;
        width_ = kv_.dim_panels() * LANES;
        size_t wanted = size_t(queries_ * (kv_.head_dim + stride_ + width_ + 1));
        if (scratch.size() < wanted) scratch.resize(wanted);
        q_ = scratch.data();
        scores_ = q_ + queries_ * kv_.head_dim;
        sums_ = scores_ + queries_ * stride_;
        inverse_ = sums_ + queries_ * width_;
    }

    void run() {
        load_queries();
        score();
        for (int64_t m = 0; m < queries_; ++m) softmax(m);
        std::fill(sums_, sums_ + queries_ * width_, 0.0f);
        for (int64_t block = block0_; block < block1_; ++block) add_values(block);
        write();
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

    const bf16* key_panel(int64_t panel) const {
        int64_t block = tile_.blocks[block0_ + panel / kv_.groups()];
        return kv_.key_block(call_.layer, block, kv_head_) + panel % kv_.groups() * kv_.head_dim * LANES;
    }

    const bf16* value_block(int64_t block) const {
        return kv_.value_block(call_.layer, tile_.blocks[block], kv_head_);
    }

    // The panel that is read after a panel of keys. A sequence's blocks lie anywhere, and each is too short for the
    // processor's own prefetches: without an explicit one, decoding of many sequences waits for every block.
    const bf16* after_key_panel(int64_t panel) const {
        return panel + 1 < (block1_ - block0_) * kv_.groups() ? key_panel(panel + 1) : value_block(block0_);
    }

    template <int MR, int P> void score_panels(int64_t m, int64_t panel) {
        const bf16* panels[P];
        for (int p = 0; p < P; ++p) panels[p] = key_panel(panel + p);
        V16 acc[MR][P];
        clear(acc);
        const int64_t ahead = after_key_panel(panel + P - 1) - panels[P - 1];
        accumulate<bf16, MR, P, true>(q_ + m * kv_.head_dim, kv_.head_dim, panels, LANES, kv_.head_dim, acc, ahead);
        for (int r = 0; r < MR; ++r)
            for (int p = 0; p < P; ++p) store(scores_ + (m + r) * stride_ + (panel + p) * LANES, join<bf16>(acc[r][p]));
    }

    // Every lane of every panel, written or not: lanes outside a row's range are never read.
    void score() {
        const int64_t panels = (block1_ - block0_) * kv_.groups();
        for (int64_t panel = 0; panel < panels; panel += 2)
            for_row_tiles(queries_, [&](auto constant, int64_t m) {
                constexpr int MR = decltype(constant)::value;
                if (panel + 1 == panels) return score_panels<MR, 1>(m, panel);
                if constexpr (MR <= 2 || TILE_PANELS == 2) return score_panels<MR, 2>(m, panel);
                score_panels<MR, 1>(m, panel);
                score_panels<MR, 1>(m, panel + 1);
            });
    }


    // Turns query m's scores into exp(score - best), zero outside the row's range, and keeps 1 / their sum.
    void softmax(int64_t m) {
        const int64_t position = tile_.position + m / group_;
        const int64_t from = call_.first_position(position), to = position + 1;
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
        inverse_[m] = 1.0f / sum_lanes(sum);
    }

    static bool is_whole(Range lanes) { return lanes.lo == 0 && lanes.hi == LANES; }

    // f(panel, lanes) for each panel that holds positions of [from, to), ascending.
    template <class F> void for_panels(int64_t from, int64_t to, F&& f) const {
        for (int64_t block = from / kv_.block_size; block <= (to - 1) / kv_.block_size; ++block)
            for (int64_t g = 0; g < kv_.groups(); ++g) {
                int64_t size = std::min<int64_t>(LANES, kv_.block_size - g * LANES);
                Range lanes = overlap(from, to, block * kv_.block_size + g * LANES, size);
                if (lanes.lo < lanes.hi) f((block - block0_) * kv_.groups() + g, lanes);
            }
    }

    Range slots_of(int64_t row, int64_t block) const {
        int64_t position = tile_.position + row;
        return overlap(call_.first_position(position), position + 1, block * kv_.block_size, kv_.block_size);
    }

    // Adds the values of a block to all rows that use the same slots of it at once.
    void add_values(int64_t block) {
        for (int64_t row = 0; row < tile_.rows;) {
            Range slots = slots_of(row, block);
            int64_t end = row + 1;
            while (end < tile_.rows && slots_of(end, block) == slots) ++end;
            if (slots.lo < slots.hi) add_values(block, slots, row * group_, end * group_);
            row = end;
        }
    }

    void add_values(int64_t block, Range slots, int64_t m0, int64_t m1) {
        const bf16* values = value_block(block) + slots.lo * LANES;
        const int64_t ahead = value_block(std::min(block + 1, block1_ - 1)) - value_block(block);
        const float* weights = scores_ + (block - block0_) * kv_.groups() * LANES + slots.lo;
        for_row_tiles(m1 - m0, [&](auto constant, int64_t m) {
            constexpr int MR = decltype(constant)::value;
            constexpr int P = MR <= 2 ? 2 : TILE_PANELS;
            int64_t panel = 0;
            for (; panel + P <= kv_.dim_panels(); panel += P)
                sum_panels<MR, P>(values, weights, m0 + m, panel, slots.hi - slots.lo, ahead);
            for (; panel < kv_.dim_panels(); ++panel)
                sum_panels<MR, 1>(values, weights, m0 + m, panel, slots.hi - slots.lo, ahead);
        });
    }

    // `sums_` is kept in split order until `write`.
    template <int MR, int P>
    void sum_panels(const bf16* values, const float* weights, int64_t m, int64_t panel, int64_t count, int64_t ahead) {
        const bf16* panels[P];
        for (int p = 0; p < P; ++p) panels[p] = values + (panel + p) * kv_.block_size * LANES;
        float* sums = sums_ + m * width_ + panel * LANES;
        V16 acc[MR][P];
#pragma GCC unroll 16
        for (int r = 0; r < MR; ++r)
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) acc[r][p] = load(sums + r * width_ + p * LANES);
        accumulate<bf16, MR, P, true>(weights + m * stride_, stride_, panels, LANES, count, acc, ahead);
#pragma GCC unroll 16
        for (int r = 0; r < MR; ++r)
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) store(sums + r * width_ + p * LANES, acc[r][p]);
    }

    void write() {
        for (int64_t m = 0; m < queries_; ++m) {
            float* to = query_row(call_.out, m);
            for (int64_t i = 0; i < kv_.head_dim; i += LANES) {
                V16 value = mul(join<bf16>(load(sums_ + m * width_ + i)), set1(inverse_[m]));
                if (i + LANES <= kv_.head_dim) store(to + i, value);
                else store_first(to + i, value, int(kv_.head_dim - i));
            }
        }
    }

    const Call& call_;
    const Kv& kv_;
    const Tile& tile_;
    int64_t kv_head_, group_, queries_;
    int64_t block0_, block1_;  // the tile reads blocks [block0_, block1_) of its sequence
    int64_t stride_, width_;   // floats per query in scores_ and in sums_
    float *q_, *scores_, *sums_, *inverse_;
};

// Rows that follow each other in one sequence, about twelve queries at a time.
void cut_tiles(const Call& call, std::vector<Tile>& tiles) {
    const int64_t most = std::max<int64_t>(1, 12 / call.group());
    tiles.clear();
    for (int64_t row = 0; row < call.q.count; ++row) {
        int64_t position = call.batch.positions[row];
        const int32_t* blocks = call.batch.block_tables + call.batch.row_sequence[row] * call.batch.max_blocks;
        if (!tiles.empty()) {
            Tile& last = tiles.back();
            if (last.blocks == blocks && last.position + last.rows == position && last.rows < most) {
                ++last.rows;
                continue;
            }
        }
        tiles.push_back({row, 1, position, blocks});
    }
}

// Rotate-half: element i pairs with element i + half. Without angles, x is copied.
void rotate(const float* x, const float* cos, const float* sin, int64_t half, float* out) {
    if (!cos) {
        std::copy(x, x + 2 * half, out);
        return;
    }
    for (int64_t i = 0; i < half; ++i) {
        float low = x[i], high = x[i + half];
        out[i] = low * cos[i] - high * sin[i];
        out[i + half] = high * cos[i] + low * sin[i];
    }
}

}  // namespace
}  // namespace ml

void ml::rotate_and_store(
    Pool* pool, Rows qkv, RopeTable rope, const Kv& kv, int64_t layer, int64_t heads, const AttentionBatch& batch,
    Rows q) {
    const int64_t rows = qkv.count, dim = kv.head_dim, half = dim / 2;
    const int64_t chunks = chunks_for(rows, rows * qkv.width, 1 << 14, pool_threads(pool));
    auto row_work = [&](int64_t row, std::vector<float>& key) {
        const int64_t angle = batch.positions[row] * half;
        const float* from = qkv.row(row);
        const float *c = rope.cos ? rope.cos + angle : nullptr, *s = rope.cos ? rope.sin + angle : nullptr;
        for (int64_t h = 0; h < heads; ++h) rotate(from + h * dim, c, s, half, q.row(row) + h * dim);
        const int64_t block = batch.slots[row] / kv.block_size, slot = batch.slots[row] % kv.block_size;
        for (int64_t h = 0; h < kv.kv_heads; ++h) {
            rotate(from + (heads + h) * dim, c, s, half, key.data());
            const float* value = from + (heads + kv.kv_heads + h) * dim;
            bf16* k = kv.key_block(layer, block, h) + slot / LANES * dim * LANES + slot % LANES;
            bf16* v = kv.value_block(layer, block, h) + slot * LANES;
            for (int64_t i = 0; i < dim; ++i) {
                k[i * LANES] = to_bf16(key[size_t(i)]);
                v[i / LANES * kv.block_size * LANES + i % LANES] = to_bf16(value[i]);
            }
        }
    };
    parallel(pool, chunks, [&](int64_t chunk) {
        static thread_local std::vector<float> key;
        if (key.size() < size_t(dim)) key.resize(size_t(dim));
        for (int64_t r = chunk_start(rows, chunks, chunk); r < chunk_start(rows, chunks, chunk + 1); ++r) row_work(r, key);
    });
}

void ml::attend(
    Pool* pool, Rows q, const Kv& kv, int64_t layer, int64_t window, const AttentionBatch& batch, Rows y) {
    static thread_local std::vector<Tile> tiles;
    const std::vector<Tile>& own = tiles;  // the caller's, also where a worker runs the lambda below
    const Call call{kv, layer, window, q, y, batch};
    cut_tiles(call, tiles);
    const int64_t count = int64_t(own.size());
    // Head by head, so that the tiles of a long prompt find one head's keys in the cache.
    parallel(pool, count * kv.kv_heads, [&](int64_t task) {
        static thread_local std::vector<float> scratch;
        TileAttention(call, own[size_t(task % count)], task / count, scratch).run();
    });
}

extern "C" {

// Elements of the key and of the value storage of one block of one layer, all kv heads.
int64_t ml_key_elements(const ml::Kv* kv) { return kv->kv_heads * kv->key_elements(); }
int64_t ml_value_elements(const ml::Kv* kv) { return kv->kv_heads * kv->value_elements(); }

}  // extern "C"
