// The picks of a step: its rows, each once for every expert that it is sent to, sorted by expert and then by row.
#pragma once

#include <algorithm>
#include <vector>

#include "arguments.h"

namespace ml {

struct Picks {
    int64_t chosen;              // experts of each row
    std::vector<int64_t> order;  // (picks,), each `row * chosen + place of the expert in the row's routes`
    std::vector<int64_t> starts; // of each expert's picks, and the end of the last expert's that has any

    // routes: as the operation `route` returns them
    explicit Picks(Rows routes);

    int64_t experts() const { return int64_t(starts.size()) - 1; }
    int64_t start(int64_t expert) const { return starts[size_t(expert)]; }
    int64_t stop(int64_t expert) const { return starts[size_t(expert) + 1]; }
    int64_t row(int64_t pick) const { return order[size_t(pick)] / chosen; }
    // The expert's first pick of `row` or of a row after it.
    int64_t first_from(int64_t expert, int64_t row) const {
        const auto begin = order.begin() + start(expert), end = order.begin() + stop(expert);
        return std::lower_bound(begin, end, row * chosen) - order.begin();
    }
};

}  // namespace ml
