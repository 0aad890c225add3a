// Segmented LoRA: y[row] += weight (x[row] . A) . B with each segment's own adapter, each adapter's own rank.
//
// Two passes over a list of small tasks: shrink (h = x . A, a dot product per rank) and expand (y += h . B). A task is
// some rows of one segment and one target, so that rows of one adapter share its weights in the cache.
// Each h is one dot product in sixteen lanes; each y gets one chain over the ranks, added once: the order depends on the row
// alone. The adapters of one row are added one after another by the same task, in the order of their segments.

#include <algorithm>
#include <vector>

#include "operations.h"
#include "picks.h"
#include "pool.h"
#include "tile.h"

namespace ml {
namespace {

constexpr int64_t TASK_ROWS = 24;     // rows that pass over one adapter matrix before the next task
constexpr int64_t TASK_RANKS = 16;    // ranks of one shrink task
constexpr int64_t TASK_COLUMNS = 512; // columns of one expand task

struct Task {
    const void *a, *b;      // A (rank, in), B (rank, out)
    const void *bias, *gain;  // (out,) each, or null
    float* h;               // (rows of the segment, rank)
    int64_t row0, row1;     // rows of the step
    int64_t first_row;      // the segment's first row: row r's intermediate is h + (r - first_row) * rank
    int64_t rank, column, out;
    float weight;
    size_t next;  // index of the task of the rows' next adapter, for the same columns; 0: there is none
};

struct Call {
    float* y;
    int64_t y_stride;
    const float* x;
    int64_t in;
};

// h of MR rows and NR ranks; the tail of fewer than sixteen elements is padded with zeros.
template <class W, int MR, int NR>
void dots(const Call& call, const Task& task, int64_t row, int64_t rank) {
    const float* x = call.x + row * call.in;
    const W* a = static_cast<const W*>(task.a) + rank * call.in;
    V16 acc[MR][NR];
    clear(acc);
    int64_t k = 0;
    for (; k + LANES <= call.in; k += LANES) {
        V16 value[MR];
#pragma GCC unroll 16
        for (int r = 0; r < MR; ++r) value[r] = load(x + r * call.in + k);
#pragma GCC unroll 16
        for (int n = 0; n < NR; ++n) {
            V16 weight = load_plain<W>(a + n * call.in + k);
#pragma GCC unroll 16
            for (int r = 0; r < MR; ++r) acc[r][n] = fma(value[r], weight, acc[r][n]);
        }
    }
    if (int rest = int(call.in - k)) {
        for (int n = 0; n < NR; ++n) {
            V16 weight = load_first<W>(a + n * call.in + k, rest);
            for (int r = 0; r < MR; ++r)
                acc[r][n] = fma(load_first(x + r * call.in + k, rest), weight, acc[r][n]);
        }
    }
    for (int r = 0; r < MR; ++r)
        for (int n = 0; n < NR; ++n) 
            task.h[(row + r - task.first_row) * task.rank + rank + n] = task.weight * sum_lanes(acc[r][n]);
}

template <class W> void shrink(const Call& call, const Task& task, int64_t rank0, int64_t rank1) {
    int64_t rank = rank0;
    for (; rank + 2 <= rank1; rank += 2) {
        int64_t row = task.row0;
        if (row + 1 == task.row1 && rank + 4 <= rank1) {  // a lone row: four ranks at once fill the pipeline
            dots<W, 1, 4>(call, task, row, rank);
            rank += 2;
            continue;
        }
        for (; row + 2 <= task.row1; row += 2) dots<W, 2, 2>(call, task, row, rank);
        if (row < task.row1) dots<W, 1, 2>(call, task, row, rank);
    }
    if (rank < rank1)
        for (int64_t row = task.row0; row < task.row1; ++row) dots<W, 1, 1>(call, task, row, rank);
}

template <class W, int MR, int P>
void add_columns(const Call& call, const Task& task, int64_t row, int64_t column) {
    const W* panels[P];
    for (int p = 0; p < P; ++p) panels[p] = static_cast<const W*>(task.b) + column + p * LANES;
    V16 acc[MR][P];
    clear(acc);
    accumulate<W, MR, P>(task.h + (row - task.first_row) * task.rank, task.rank, panels, task.out, task.rank, acc);
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) {
            float* to = call.y + (row + r) * call.y_stride + task.column + column + p * LANES;
            store(to, add(load(to), join<W>(acc[r][p])));
        }
}

// The last columns where `out` is no multiple of sixteen.
template <class W> void add_last_columns(const Call& call, const Task& task, int64_t row, int64_t column) {
    int rest = int(task.out - column);
    const W* b = static_cast<const W*>(task.b) + column;
    const float* h = task.h + (row - task.first_row) * task.rank;
    V16 acc = zero();
    for (int64_t k = 0; k < task.rank; ++k) acc = fma(set1(h[k]), load_split_first<W>(b + k * task.out, rest), acc);
    float* to = call.y + row * call.y_stride + task.column + column;
    store_first(to, add(load_first(to, rest), join<W>(acc)), rest);
}

// y += y * gain, or y += bias, in the columns [column0, column1) of the task's rows.
template <class W, bool IS_GAIN>
void add_vector(const Call& call, const Task& task, const void* vector, int64_t column0, int64_t column1) {
    const W* values = static_cast<const W*>(vector);
    for (int64_t row = task.row0; row < task.row1; ++row) {
        float* to = call.y + row * call.y_stride + task.column;
        for (int64_t c = column0; c < column1; ++c) {
            float value = to_float(values[c]);
            to[c] += IS_GAIN ? to[c] * value : value;
        }
    }
}

template <class W> void expand(const Call& call, const Task& task, int64_t column0, int64_t column1) {
    int64_t column = column0;
    if (task.gain) add_vector<W, true>(call, task, task.gain, column0, column1);
    if (task.row1 - task.row0 == 1)
        for (; column + 4 * LANES <= column1; column += 4 * LANES) add_columns<W, 1, 4>(call, task, task.row0, column);
    for (; column + LANES <= column1; column += LANES)
        for_row_tiles(task.row1 - task.row0, [&](auto constant, int64_t row) {
            add_columns<W, decltype(constant)::value, 1>(call, task, task.row0 + row, column);
        });
    if (column < column1)
        for (int64_t row = task.row0; row < task.row1; ++row) add_last_columns<W>(call, task, row, column);
    if (task.bias) add_vector<W, false>(call, task, task.bias, column0, column1);
}

// The last target of which an adapter has a rank: its entry in the table, and its first task.
struct Previous {
    const int64_t* entry;
    size_t first;
};

// The caller's scratch, kept between calls.
struct Plan {
    std::vector<Task> tasks;
    std::vector<Previous> previous;                 // of each adapter of a run
    std::vector<int64_t> shrink_ends, expand_ends;  // running counts of pieces after each task
    std::vector<float> h;
};

int64_t pieces(int64_t size, int64_t piece) { return (size + piece - 1) / piece; }

// for_runs(f) calls f(segments, number of them, first row, last row, shift) for each run of rows of the same adapters and
// one expert: the entries of an adapter's table lie `shift` after those of the targets.
template <class W, class R>
void plan_tasks(Plan& plan, const LoraBatch& lora, int64_t layer, LoraTargets targets, R&& for_runs) {
    plan.tasks.clear();
    plan.shrink_ends.clear();
    plan.expand_ends.clear();
    int64_t floats = 0, shrinks = 0, expands = 0;
    for_runs([&](const Segment* segments, int64_t count, int64_t start, int64_t stop, int64_t shift) {
        plan.previous.assign(size_t(count), {nullptr, 0});
        for (int64_t t = 0; t < targets.count; ++t) {
            const LoraTarget& target = targets.first[t];
            const int64_t index = layer * lora.width + target.projection + shift;
            size_t above = 0;  // first task of the rows' adapter before, for this target
            bool is_above = false;
            for (int64_t s = 0; s < count; ++s) {
                const Segment& segment = segments[s];
                const W* image = static_cast<const W*>(segment.image);
                const int64_t* entry = segment.table + index * 3;
                const int64_t rank = entry[2];
                if (rank == 0) continue;
                const int64_t* own = segment.vectors ? segment.vectors + index * 2 : nullptr;
                auto vector = [&](int which) { return own && own[which] >= 0 ? image + own[which] : nullptr; };
                // Targets of one product may share A, as the halves of an expert's gate_up do: h is computed once.
                const Previous before = plan.previous[size_t(s)];
                const bool is_shared = before.entry && before.entry[0] == entry[0] && before.entry[2] == rank;
                size_t shared = before.first;
                const size_t first = plan.tasks.size();
                plan.previous[size_t(s)] = {entry, first};
                for (int64_t row = start; row < stop; row += TASK_ROWS) {
                    int64_t end = std::min(stop, row + TASK_ROWS);
                    if (is_above) plan.tasks[above++].next = plan.tasks.size();
                    // `h` holds an offset until the buffer has its final size.
                    float* h = is_shared ? plan.tasks[shared++].h : reinterpret_cast<float*>(floats * 4);
                    plan.tasks.push_back({image + entry[0], image + entry[1], vector(0), vector(1), h, row, end, row,
                                          rank, target.column, target.out, float(segment.weight), 0});
                    floats += is_shared ? 0 : (end - row) * rank;
                    plan.shrink_ends.push_back(shrinks += is_shared ? 0 : pieces(rank, TASK_RANKS));
                    plan.expand_ends.push_back(expands += is_above ? 0 : pieces(target.out, TASK_COLUMNS));
                }
                above = first, is_above = true;
            }
        }
    });
    if (int64_t(plan.h.size()) < floats) plan.h.resize(size_t(floats));
    for (Task& task : plan.tasks) task.h = plan.h.data() + reinterpret_cast<int64_t>(task.h) / 4;
}

// Runs f(task, piece) over every piece of every task.
template <class F> void for_pieces(Pool* pool, const Plan& plan, const std::vector<int64_t>& ends, F&& f) {
    parallel(pool, ends.back(), [&](int64_t item) {
        size_t task = size_t(std::upper_bound(ends.begin(), ends.end(), item) - ends.begin());
        f(plan.tasks[task], item - (task ? ends[task - 1] : 0));
    });
}

template <class W, class R>
void add_deltas(
    Pool* pool, const Call& call, const LoraBatch& lora, int64_t layer, LoraTargets targets, R&& for_runs) {
    static thread_local Plan plan;
    Plan& own = plan;  // the caller's, also where a worker runs the lambdas below
    plan_tasks<W>(own, lora, layer, targets, for_runs);
    if (own.tasks.empty()) return;
    for_pieces(pool, own, own.shrink_ends, [&](const Task& task, int64_t piece) {
        shrink<W>(call, task, piece * TASK_RANKS, std::min(task.rank, (piece + 1) * TASK_RANKS));
    });
    for_pieces(pool, own, own.expand_ends, [&](const Task& task, int64_t piece) {
        const int64_t column0 = piece * TASK_COLUMNS, column1 = std::min(task.out, column0 + TASK_COLUMNS);
        expand<W>(call, task, column0, column1);
        for (size_t next = task.next; next; next = own.tasks[next].next) expand<W>(call, own.tasks[next], column0, column1);
    });
}

template <class R>
void add_deltas_of(
    Pool* pool, const Call& call, const LoraBatch& lora, int64_t layer, LoraTargets targets, R&& for_runs) {
    if (lora.is_bf16) add_deltas<bf16>(pool, call, lora, layer, targets, for_runs);
    else add_deltas<float>(pool, call, lora, layer, targets, for_runs);
}

// Calls f(segments, number of them) for each run of neighbours with the same rows.
template <class F> void for_same_rows(const LoraBatch& lora, F&& f) {
    const Segment* stop = lora.segments + lora.num_segments;
    for (const Segment *first = lora.segments, *last = first; first < stop; first = last) {
        while (last < stop && last->start == first->start) ++last;
        f(first, int64_t(last - first));
    }
}

}  // namespace
}  // namespace ml

void ml::add_lora(Pool* pool, Rows y, Rows x, const LoraBatch& lora, int64_t layer, LoraTargets targets) {
    if (lora.num_segments == 0) return;
    add_deltas_of(pool, {y.data, y.width, x.data, x.width}, lora, layer, targets, [&](auto&& f) {
        for_same_rows(lora, [&](const Segment* own, int64_t count) { f(own, count, own->start, own->stop, 0); });
    });
}

// The picks of a segment's rows with one expert lie side by side, since an expert's picks are sorted by row.
void ml::add_expert_lora(
    Pool* pool, Rows routes, Rows y, Rows x, const LoraBatch& lora, int64_t layer, LoraTargets targets) {
    if (lora.num_segments == 0) return;
    const Picks picks(routes);
    add_deltas_of(pool, {y.data, y.width, x.data, x.width}, lora, layer, targets, [&](auto&& f) {
        for_same_rows(lora, [&](const Segment* own, int64_t count) {
            for (int64_t expert = 0; expert < picks.experts(); ++expert) {
                const int64_t first = picks.first_from(expert, own->start);
                const int64_t last = picks.first_from(expert, own->stop);
                if (first < last) f(own, count, first, last, expert * EXPERT_PROJECTIONS);
            }
        });
    });
}
