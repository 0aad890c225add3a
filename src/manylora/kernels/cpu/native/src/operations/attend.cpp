// Paged attention with grouped heads: rotary embedding, the write of keys and values, and the softmax-weighted sum, cut
// into units of work for the pool's threads.
//
// A row merges its segments (`tile_attention.h`) in ascending order, whichever threads have summed them. So a row has
// the same bits in every batch and on any number of threads. Rows of one sequence share a tile, and tiles a group, for
// speed alone.
//
// Source: threads over parts of one context: Flash-Decoding (Dao et al., 2023). Change: the parts that are summed apart
// are segments, which do not depend on the number of threads.

#include <algorithm>
#include <cstring>
#include <vector>

#include "operations.h"
#include "pool.h"
#include "tile_attention.h"

namespace ml {
namespace {

constexpr int64_t TILE_QUERIES = 12;
constexpr int64_t GROUP_TILES = 8;
constexpr int64_t UNITS_A_THREAD = 4;

// Consecutive tiles of one sequence, and the segments [segment0, segment1) that they read.
struct Group { int64_t tile0, tile1, segment0, segment1; };

// Segments [segment0, segment1) of a group and the kv heads [head0, head1). `parts` is the place of the partial sums of a
// split group.
struct Unit { int64_t group, head0, head1, segment0, segment1, parts; };

// Rows that follow each other in one sequence, about twelve queries at a time.
void cut_tiles(const AttentionCall& call, std::vector<Tile>& tiles) {
    const int64_t most = std::max<int64_t>(1, TILE_QUERIES / call.group());
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

// Tiles that follow each other in one sequence, so that all of them read a segment while it is in a core's cache.
void cut_groups(const AttentionCall& call, const std::vector<Tile>& tiles, std::vector<Group>& groups) {
    groups.clear();
    for (int64_t t = 0; t < int64_t(tiles.size()); ++t) {
        const Tile& tile = tiles[size_t(t)];
        const int64_t end = call.segment_of(tile.position + tile.rows - 1) + 1;
        if (!groups.empty()) {
            Group& last = groups.back();
            const Tile& before = tiles[size_t(t - 1)];
            if (before.blocks == tile.blocks && before.position + before.rows == tile.position &&
                t - last.tile0 < GROUP_TILES) {
                last.tile1 = t + 1, last.segment1 = end;
                continue;
            }
        }
        groups.push_back({t, t + 1, call.segment_of(call.first_position(tile.position)), end});
    }
}

// The units of one call, and the sums that they leave for each other.
template <class Form> class Work {
   public:
    void run(Pool* pool, const AttentionCall& call) {
        call_ = &call;
        width_ = call.kv.dim_panels() * LANES;
        cut_tiles(call, tiles_);
        cut_groups(call, tiles_, groups_);
        cut_units(pool_threads(pool));
        const int64_t pieces = int64_t(pieces_.size());
        parallel(pool, pieces + int64_t(whole_.size()), [&](int64_t unit) {
            if (unit < pieces) sum_piece(pieces_[size_t(unit)]);
            else sum_whole(whole_[size_t(unit - pieces)]);
        });
        parallel(pool, int64_t(split_.size()), [&](int64_t unit) { merge_pieces(split_[size_t(unit)]); });
    }

   private:
    using Word = typename Form::Word;

    // A thread's memory for the tiles of one group.
    struct Scratch {
        std::vector<float> memory;
        std::vector<Word> words;
        std::vector<const bf16*> places;
        std::vector<TileAttention<Form>> tiles;
        std::vector<Sums> parts, all;  // of a segment, of all segments
    };

    // A group of some kv heads is one unit, unless its context is so large a part of the whole that threads would wait for
    // it. Head by head, so that the groups of a long prompt find one head's keys in the shared cache.
    void cut_units(int64_t threads) {
        whole_.clear(), pieces_.clear(), split_.clear();
        int64_t segments = 0, floats = 0;
        for (const Group& group : groups_) segments += group.segment1 - group.segment0;
        const int64_t heads = call_->kv.kv_heads, all = segments * heads, wanted = UNITS_A_THREAD * threads;
        for (int64_t head = 0; head < heads; ++head)
            for (int64_t g = 0; g < int64_t(groups_.size()); ++g) {
                const Group& group = groups_[size_t(g)];
                const int64_t count = group.segment1 - group.segment0, side = heads_of(group, segments, wanted);
                if (head % side) continue;
                const int64_t end = std::min(heads, head + side), work = count * (end - head);
                const int64_t pieces = threads == 1 ? 1 : std::min(count, (work * wanted + all - 1) / all);
                const Unit unit{g, head, end, group.segment0, group.segment1, floats};
                if (pieces <= 1) {
                    whole_.push_back(unit);
                    continue;
                }
                for (int64_t piece = 0; piece < pieces; ++piece)
                    pieces_.push_back(
                        {g, head, end, group.segment0 + chunk_start(count, pieces, piece),
                         group.segment0 + chunk_start(count, pieces, piece + 1), floats});
                split_.push_back(unit);
                floats += count * floats_of(unit);
            }
        if (parts_.size() < size_t(floats)) parts_.resize(size_t(floats));
    }

    // The kv heads of a unit. Those of a block lie side by side in memory, so that a lone tile, which waits for memory, reads
    // them one after the other, if there are units enough for the threads.
    int64_t heads_of(const Group& group, int64_t segments, int64_t wanted) const {
        if (group.tile1 - group.tile0 > 1) return 1;
        const int64_t count = group.segment1 - group.segment0, units = (count * wanted + segments - 1) / segments;
        return std::max<int64_t>(1, call_->kv.kv_heads / ((units + count - 1) / count));
    }

    // Of the partial sums of one segment.
    int64_t floats_of(const Unit& unit) const {
        const Group& group = groups_[size_t(unit.group)];
        int64_t floats = 0;
        for (int64_t t = group.tile0; t < group.tile1; ++t) floats += Sums::size(queries_of(t), width_);
        return floats * (unit.head1 - unit.head0);
    }

    int64_t queries_of(int64_t tile) const { return tiles_[size_t(tile)].rows * call_->group(); }

    // f(tile of the scratch, its partial sums) for each tile of a split unit.
    template <class F> void for_parts(const Unit& unit, int64_t segment, F&& f) {
        const Group& group = groups_[size_t(unit.group)];
        float* memory = parts_.data() + unit.parts + (segment - group.segment0) * floats_of(unit);
        const int64_t tiles = group.tile1 - group.tile0;
        for (int64_t i = 0; i < tiles * (unit.head1 - unit.head0); ++i) {
            const int64_t queries = queries_of(group.tile0 + i % tiles);
            f(size_t(i), Sums::at(memory, queries, width_));
            memory += Sums::size(queries, width_);
        }
    }

    // The tiles of a unit, head after head.
    Scratch& prepare(const Unit& unit) const {
        static thread_local Scratch scratch;
        const Group& group = groups_[size_t(unit.group)];
        int64_t most = 0;
        for (int64_t t = group.tile0; t < group.tile1; ++t) most = std::max(most, queries_of(t));
        const int64_t count = (group.tile1 - group.tile0) * (unit.head1 - unit.head0), sums = Sums::size(most, width_);
        const int64_t q = most * width_ / Form::DEPTH, scores = most * call_->score_stride();
        const int64_t weights = scores / Form::DEPTH, keys = call_->key_places(), places = keys + call_->value_places();
        Word* words = grown(scratch.words, count * (q + weights));
        float* floats = grown(scratch.memory, count * (scores + 2 * sums));
        const bf16** pointers = grown(scratch.places, count * places);
        scratch.tiles.clear(), scratch.parts.clear(), scratch.all.clear();
        for (int64_t head = unit.head0; head < unit.head1; ++head)
            for (int64_t t = group.tile0; t < group.tile1; ++t) {
                scratch.tiles.emplace_back(
                    *call_, tiles_[size_t(t)], head,
                    typename TileAttention<Form>::Room{words, words + q, floats, pointers, pointers + keys});
                scratch.parts.push_back(Sums::at(floats + scores, most, width_));
                scratch.all.push_back(Sums::at(floats + scores + sums, most, width_));
                words += q + weights, floats += scores + 2 * sums, pointers += places;
            }
        return scratch;
    }

    template <class T> static T* grown(std::vector<T>& memory, int64_t count) {
        if (memory.size() < size_t(count)) memory.resize(size_t(count));
        return memory.data();
    }

    // Writes the sums of tiles [first, last) over a segment, which take turns of a run of positions. False if no row reads
    // it; then so of all of them, as they have one tile.
    bool sum_turns(std::vector<TileAttention<Form>>& tiles, size_t first, size_t last, int64_t segment, const Sums* out) const {
        for (size_t t = first; t < last; ++t)
            if (!tiles[t].begin(segment)) return false;
        const bool is_last = last == tiles.size();
        for (size_t t = first; t < last; ++t)
            tiles[t].follow(
                tiles[t + 1 < last ? t + 1 : first], t + 1 == last, tiles[is_last ? 0 : last], segment + is_last);
        const int64_t blocks = tiles[first].blocks(), run = last - first > 1 ? call_->run_blocks() : blocks;
        for (int64_t block = 0; block < blocks; block += run)
            for (size_t t = first; t < last; ++t) tiles[t].score(block, std::min(blocks, block + run));
        for (size_t t = first; t < last; ++t) tiles[t].softmax(out[t]);
        for (int64_t block = 0; block < blocks; block += run)
            for (size_t t = first; t < last; ++t) tiles[t].add_values(block, std::min(blocks, block + run), out[t]);
        return true;
    }

    // f(tile) for each tile of a unit whose sums over the segment are written to `out`: the heads of a lone tile take turns,
    // several tiles come one after the other.
    template <class F> void sum_segment(const Unit& unit, Scratch& own, int64_t segment, const Sums* out, F&& f) const {
        const size_t count = own.tiles.size(), side = size_t(unit.head1 - unit.head0);
        for (size_t first = 0; first < count; first += side)
            if (sum_turns(own.tiles, first, first + side, segment, out))
                for (size_t t = first; t < first + side; ++t) f(t);
    }

    void sum_whole(const Unit& unit) const {
        Scratch& own = prepare(unit);
        for (int64_t segment = unit.segment0; segment < unit.segment1; ++segment)
            sum_segment(unit, own, segment, own.parts.data(), [&](size_t t) {
                own.tiles[t].merge(segment, own.parts[t], own.all[t]);
            });
        write(own);
    }

    void sum_piece(const Unit& unit) {
        Scratch& own = prepare(unit);
        for (int64_t segment = unit.segment0; segment < unit.segment1; ++segment) {
            for_parts(unit, segment, [&](size_t t, Sums part) { own.parts[t] = part; });
            sum_segment(unit, own, segment, own.parts.data(), [](size_t) {});
        }
    }

    void merge_pieces(const Unit& unit) {
        Scratch& own = prepare(unit);
        for (int64_t segment = unit.segment0; segment < unit.segment1; ++segment)
            for_parts(unit, segment, [&](size_t t, Sums part) { own.tiles[t].merge(segment, part, own.all[t]); });
        write(own);
    }

    static void write(const Scratch& own) {
        for (size_t t = 0; t < own.tiles.size(); ++t) own.tiles[t].write(own.all[t]);
    }

    const AttentionCall* call_ = nullptr;
    int64_t width_ = 0;
    std::vector<Tile> tiles_;
    std::vector<Group> groups_;
    std::vector<Unit> whole_, pieces_, split_;
    std::vector<float> parts_;
};

// Rotate-half: element i pairs with element i + half. Without angles, x is copied.
void rotate(const float* x, const float* cos, const float* sin, int64_t half, float* out) {
    if (!cos) {
        std::copy(x, x + 2 * half, out);
        return;
    }
    int64_t i = 0;
    for (; i + LANES <= half; i += LANES) {
        const V16 low = load(x + i), high = load(x + i + half), c = load(cos + i), s = load(sin + i);
        store(out + i, sub(mul(low, c), mul(high, s)));
        store(out + i + half, add(mul(high, c), mul(low, s)));
    }
    for (; i < half; ++i) {
        float low = x[i], high = x[i + half];
        out[i] = low * cos[i] - high * sin[i];
        out[i + half] = high * cos[i] + low * sin[i];
    }
}

// A row's key and value of one head, rounded, in their places of a block: `slot` and the form decide on them.
void store_key(const Kv& kv, const bf16* from, bf16* block, int64_t slot) {
    bf16* to = block + slot / LANES * kv.head_dim * LANES + slot % LANES * kv.depth;
    if (kv.depth == 1)
        for (int64_t i = 0; i < kv.head_dim; ++i) to[i * LANES] = from[i];
    else
        for (int64_t i = 0; i < kv.head_dim; i += 2) std::memcpy(to + i * LANES, from + i, 2 * sizeof(bf16));
}

void store_value(const Kv& kv, const bf16* from, bf16* block, int64_t slot) {
    bf16* to = block + slot / kv.depth * kv.depth * LANES + slot % kv.depth;
    const int64_t dim = kv.head_dim, depth = kv.depth, panel = kv.value_panel();
    for (int64_t first = 0; first < dim; first += LANES, to += panel)
        for (int64_t i = first; i < std::min<int64_t>(dim, first + LANES); ++i) to[(i - first) * depth] = from[i];
}

}  // namespace
}  // namespace ml

void ml::rotate_and_store(
    Pool* pool, Rows qkv, RopeTable rope, const Kv& kv, int64_t layer, int64_t heads, const AttentionBatch& batch,
    Rows q) {
    const int64_t rows = qkv.count, dim = kv.head_dim, half = dim / 2;
    const int64_t chunks = chunks_for(rows, rows * qkv.width, 1 << 14, pool_threads(pool));
    auto row_work = [&](int64_t row, float* key, bf16* rounded) {
        const int64_t angle = batch.positions[row] * half;
        const float* from = qkv.row(row);
        const float *c = rope.cos ? rope.cos + angle : nullptr, *s = rope.cos ? rope.sin + angle : nullptr;
        for (int64_t h = 0; h < heads; ++h) rotate(from + h * dim, c, s, half, q.row(row) + h * dim);
        const int64_t block = batch.slots[row] / kv.block_size, slot = batch.slots[row] % kv.block_size;
        for (int64_t h = 0; h < kv.kv_heads; ++h) {
            rotate(from + (heads + h) * dim, c, s, half, key);
            const float* value = from + (heads + kv.kv_heads + h) * dim;
            for (int64_t i = 0; i < dim; ++i) rounded[i] = to_bf16(key[i]);
            store_key(kv, rounded, kv.key_block(layer, block, h), slot);
            for (int64_t i = 0; i < dim; ++i) rounded[i] = to_bf16(value[i]);
            store_value(kv, rounded, kv.value_block(layer, block, h), slot);
        }
    };
    parallel(pool, chunks, [&](int64_t chunk) {
        static thread_local std::vector<float> key;
        static thread_local std::vector<bf16> rounded;
        if (key.size() < size_t(dim)) key.resize(size_t(dim)), rounded.resize(size_t(dim));
        for (int64_t r = chunk_start(rows, chunks, chunk); r < chunk_start(rows, chunks, chunk + 1); ++r)
            row_work(r, key.data(), rounded.data());
    });
}

void ml::attend(
    Pool* pool, Rows q, const Kv& kv, int64_t layer, int64_t window, const AttentionBatch& batch, Rows y) {
    static thread_local Work<SingleForm> singles;
    static thread_local Work<PairForm> pairs;
    const AttentionCall call{kv, layer, window, q, y, batch};
    if (kv.depth == PairForm::DEPTH) pairs.run(pool, call);
    else singles.run(pool, call);
}

extern "C" {

// Elements of the key and of the value storage of one block of one layer, all kv heads.
int64_t ml_key_elements(const ml::Kv* kv) { return kv->kv_heads * kv->key_elements(); }
int64_t ml_value_elements(const ml::Kv* kv) { return kv->kv_heads * kv->value_elements(); }

}  // extern "C"
