// The division of a product with packed panels over the pool: blocks of rows times slices of panels.
#pragma once

#include <algorithm>
#include <vector>

#include "pool.h"
#include "products.h"
#include "tile.h"

namespace ml {

// Calls f(first row, height) for every tile of all groups on the pool; rows are `in` inputs wide.
template <class F> inline void for_tiles(Pool* pool, RowGroups groups, TileHeight height, int64_t in, F&& f) {
    int64_t count = 0;
    for (const RowGroup& own : groups) count += Tiles(own.rows, height).count;
    const int64_t chunks = chunks_for(count, groups.rows * in, 1 << 15, pool_threads(pool));
    parallel(pool, chunks, [&](int64_t chunk) {
        const int64_t tile0 = chunk_start(count, chunks, chunk), tile1 = chunk_start(count, chunks, chunk + 1);
        int64_t before = 0;
        for (const RowGroup& own : groups) {
            const Tiles tiles(own.rows, height);
            const int64_t end = std::min(tiles.count, tile1 - before);
            for (int64_t tile = std::max<int64_t>(0, tile0 - before); tile < end; ++tile)
                f(own.first + tiles.start(tile), tiles.start(tile + 1) - tiles.start(tile));
            before += tiles.count;
        }
    });
}

// The pieces of one group's product.
//   block_rows  rows of x that stay in a second-level cache beside a panel
//   group       panels that are read side by side; slices are cut between groups
//   panel_cost  products of one row with one panel, in units of a bfloat16 product
// Below about eight rows the time of a panel is its read from memory, not its arithmetic; a slice is then a quarter of a
// megabyte.
class Slices {
  public:
    Slices(int64_t rows, int64_t panels, int64_t block_rows, int64_t group, int64_t panel_cost, int64_t threads)
        : rows_(rows), panels_(panels), group_(group), row_blocks_((rows + block_rows - 1) / block_rows) {
        groups_ = (panels + group - 1) / group;
        const int64_t work = panels * panel_cost * std::max<int64_t>(8, rows / row_blocks_);
        slices_ = chunks_for(groups_, work, 1 << 20, threads);
    }

    int64_t count() const { return row_blocks_ * slices_; }

    // Calls f(first row, last row, first panel, last panel), half-open.
    template <class F> void run(int64_t piece, F&& f) const {
        const int64_t slice = piece % slices_, part = piece / slices_;
        const int64_t first = chunk_start(groups_, slices_, slice) * group_;
        const int64_t last = std::min(panels_, chunk_start(groups_, slices_, slice + 1) * group_);
        f(chunk_start(rows_, row_blocks_, part), chunk_start(rows_, row_blocks_, part + 1), first, last);
    }

  private:
    int64_t rows_, panels_, group_, row_blocks_, groups_, slices_;
};

// Runs the pieces of the products of all groups as one job of the pool.
//   slices_of(rows)  the `Slices` of a group
//   f(group, first row, last row, first panel, last panel), rows counted from the group's first
template <class S, class F> inline void for_slices(Pool* pool, RowGroups groups, S&& slices_of, F&& f) {
    auto run = [&](const RowGroup& group, const Slices& slices, int64_t piece) {
        slices.run(piece, [&](int64_t row0, int64_t row1, int64_t first, int64_t last) {
            f(group, row0, row1, first, last);
        });
    };
    if (groups.rows == 0) return;
    if (groups.count == 1) {
        const Slices slices = slices_of(groups.rows);
        return parallel(pool, slices.count(), [&](int64_t piece) { run(*groups.groups, slices, piece); });
    }
    std::vector<Slices> all;
    std::vector<int64_t> ends;  // running counts of pieces after each group
    for (const RowGroup& group : groups) {
        all.push_back(slices_of(group.rows));
        ends.push_back((ends.empty() ? 0 : ends.back()) + all.back().count());
    }
    parallel(pool, ends.back(), [&](int64_t item) {
        const size_t index = size_t(std::upper_bound(ends.begin(), ends.end(), item) - ends.begin());
        run(groups.groups[index], all[index], item - (index ? ends[index - 1] : 0));
    });
}

}  // namespace ml
