// A mixture of experts: the routes of rows, and the products of their picks with the weights of the experts.
//
// A pick is a row together with one of its experts. Picks are sorted by expert and then by row, so that each expert's
// are a group of rows of one product. A pick's result depends on its row and its expert alone.

#include <algorithm>
#include <cstring>
#include <vector>

#include "operations.h"
#include "picks.h"
#include "pool.h"
#include "products.h"

namespace ml {
namespace {

constexpr int64_t GRAIN = 1 << 15;  // elements a chunk; below that, waking a worker costs more than it saves

template <class F> void for_each(Pool* pool, int64_t count, int64_t work, F&& f) {
    const int64_t chunks = chunks_for(count, count * work, GRAIN, pool_threads(pool));
    parallel(pool, chunks, [&](int64_t chunk) {
        for (int64_t i = chunk_start(count, chunks, chunk); i < chunk_start(count, chunks, chunk + 1); ++i) f(i);
    });
}

// N dot products of x (width,) with rows of `weight` (…, width), each in sixteen lanes.
template <int N> void dots(const float* x, const float* weight, int64_t width, float* to) {
    V16 sums[N];
    for (int n = 0; n < N; ++n) sums[n] = zero();
    for (int64_t i = 0; i < width; i += LANES) {
        const int rest = int(std::min<int64_t>(LANES, width - i));
        auto part = [&](const float* p) { return rest == LANES ? load(p + i) : load_first(p + i, rest); };
        const V16 value = part(x);
        for (int n = 0; n < N; ++n) sums[n] = fma(value, part(weight + n * width), sums[n]);
    }
    for (int n = 0; n < N; ++n) to[n] = sum_lanes(sums[n]);
}

// weights = softmax(scores), both (experts,).
void softmax(const float* scores, float* weights, int64_t experts) {
    const V16 largest = set1(*std::max_element(scores, scores + experts));
    float sum = 0.0f;
    for (int64_t i = 0; i < experts; i += LANES) {
        const int count = int(std::min<int64_t>(LANES, experts - i));
        store_first(weights + i, exp(sub(load_first(scores + i, count), largest)), count);
    }
    for (int64_t e = 0; e < experts; ++e) sum += weights[e];
    for (int64_t e = 0; e < experts; ++e) weights[e] /= sum;
}

// Moves the largest weights to the front of `to`, numbers first; an expert that is chosen gets the weight -1. Where all
// weights are NaN the lowest numbers are chosen.
void choose(float* weights, int64_t experts, int64_t chosen, bool is_normed, float* to) {
    float sum = 0.0f;
    for (int64_t place = 0; place < chosen; ++place) {
        int64_t best = 0;
        while (weights[best] == -1.0f) ++best;
        for (int64_t e = best + 1; e < experts; ++e)
            if (weights[e] > weights[best]) best = e;
        to[place] = float(best);
        to[chosen + place] = weights[best];
        sum += weights[best];
        weights[best] = -1.0f;
    }
    for (int64_t place = 0; is_normed && place < chosen; ++place) to[chosen + place] /= sum;
}

}  // namespace

Picks::Picks(Rows routes) : chosen(routes.width / 2), order(size_t(routes.count * chosen)) {
    std::vector<int64_t> next;  // counts of picks at first, by expert
    auto expert = [&](int64_t row, int64_t place) { return size_t(routes.row(row)[place]); };
    for (int64_t row = 0; row < routes.count; ++row)
        for (int64_t place = 0; place < chosen; ++place) {
            if (expert(row, place) >= next.size()) next.resize(expert(row, place) + 1);
            ++next[expert(row, place)];
        }
    starts.push_back(0);
    for (int64_t& count : next) {
        starts.push_back(starts.back() + count);
        count = starts.back() - count;
    }
    for (int64_t row = 0; row < routes.count; ++row)
        for (int64_t place = 0; place < chosen; ++place)
            order[size_t(next[expert(row, place)]++)] = row * chosen + place;
}

}  // namespace ml

void ml::score_experts(Pool* pool, Rows x, const float* router, Rows y) {
    const int64_t width = x.width;
    for_each(pool, y.count, y.width * width, [&](int64_t row) {
        int64_t e = 0;
        for (; e + 4 <= y.width; e += 4) dots<4>(x.row(row), router + e * width, width, y.row(row) + e);
        for (; e < y.width; ++e) dots<1>(x.row(row), router + e * width, width, y.row(row) + e);
    });
}

void ml::route(Pool* pool, Rows scores, int64_t chosen, bool is_normed, Rows routes) {
    const int64_t experts = scores.width;
    for_each(pool, scores.count, experts * (chosen + 4), [&](int64_t row) {
        std::vector<float> weights(static_cast<size_t>(experts));
        softmax(scores.row(row), weights.data(), experts);
        choose(weights.data(), experts, chosen, is_normed, routes.row(row));
    });
}

void ml::send_to_experts(Pool* pool, Rows routes, Rows x, Rows y) {
    const Picks picks(routes);
    for_each(pool, y.count, y.width, [&](int64_t pick) {
        std::memcpy(y.row(pick), x.row(picks.row(pick)), size_t(y.width) * 4);
    });
}

void ml::expert_linear(Pool* pool, Rows routes, Rows x, ExpertWeights experts, Rows y) {
    const Picks picks(routes);
    std::vector<RowGroup> groups;
    for (int64_t expert = 0; expert < picks.experts(); ++expert)
        if (const int64_t count = picks.stop(expert) - picks.start(expert))
            groups.push_back({experts.first[expert].data, picks.start(expert), count});
    const RowGroups all{groups.data(), int64_t(groups.size()), x.count};
    multiply(pool, experts.first->format, x.data, all, y.data, x.width, y.width);
}

void ml::gather_from_experts(Pool* pool, Rows routes, Rows x, Rows y) {
    const Picks picks(routes);
    std::vector<int64_t> places(picks.order.size());  // of each row's picks in x, in the order of the routes
    for (size_t pick = 0; pick < places.size(); ++pick) places[size_t(picks.order[pick])] = int64_t(pick);
    for_each(pool, y.count, y.width * picks.chosen, [&](int64_t row) {
        const float* weights = routes.row(row) + picks.chosen;
        const int64_t* own = places.data() + row * picks.chosen;
        for (int64_t i = 0; i < y.width; i += LANES) {
            const int rest = int(std::min<int64_t>(LANES, y.width - i));
            V16 sum = zero();
            for (int64_t place = 0; place < picks.chosen; ++place) {
                const float* from = x.row(own[place]) + i;
                sum = fma(set1(weights[place]), rest == LANES ? load(from) : load_first(from, rest), sum);
            }
            if (rest == LANES) store(y.row(row) + i, sum);
            else store_first(y.row(row) + i, sum, rest);
        }
    });
}
