// The division of a product with packed panels over the pool: blocks of rows times slices of panels.
#pragma once

#include <algorithm>

#include "pool.h"
#include "simd.h"

namespace ml {

// Calls f(first row, last row, first panel, last panel) for every piece, half-open.
//   block_rows  rows of x that stay in a second-level cache beside a panel
//   group       panels that are read side by side; slices are cut between groups
//   panel_cost  products of one row with one panel, in units of a bfloat16 product
// Below about eight rows the time of a panel is its read from memory, not its arithmetic; a slice is then a quarter of a
// megabyte.
template <class F>
inline void for_slices(
    Pool* pool, int64_t rows, int64_t panels, int64_t block_rows, int64_t group, int64_t panel_cost, F&& f) {
    if (rows == 0) return;
    const int64_t row_blocks = (rows + block_rows - 1) / block_rows;
    const int64_t groups = (panels + group - 1) / group;
    const int64_t work = panels * panel_cost * std::max<int64_t>(8, rows / row_blocks);
    const int64_t slices = chunks_for(groups, work, 1 << 20, pool_threads(pool));
    parallel(pool, row_blocks * slices, [&](int64_t chunk) {
        int64_t slice = chunk % slices, part = chunk / slices;
        int64_t first = chunk_start(groups, slices, slice) * group;
        int64_t last = std::min(panels, chunk_start(groups, slices, slice + 1) * group);
        f(chunk_start(rows, row_blocks, part), chunk_start(rows, row_blocks, part + 1), first, last);
    });
}

}  // namespace ml
