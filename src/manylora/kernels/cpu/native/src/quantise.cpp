// Rows of activations as levels of a byte; `quantised.h` describes their form.

#include "quantised.h"

#include <limits>
#include <vector>

namespace ml {
namespace {

constexpr float LEVELS = 127.0f;
constexpr float SMALLEST = 1e-30f;  // below it a group counts as zeros: LEVELS / largest would not be finite
constexpr uint32_t INFINITE = 0x7f800000u;

// The scratch of this thread's current call; the memory grows to the largest step and is kept.
struct Scratch {
    std::vector<uint32_t> levels;
    std::vector<float> worth;
    std::vector<int32_t> sums;
};

template <class T> T* grown(std::vector<T>& memory, int64_t count) {
    if (int64_t(memory.size()) < count) memory.resize(size_t(count));
    return memory.data();
}

// Words of one row, `stride` of them from one quad to the next.
void put_words(const int8_t* levels, const RowForm& form, uint32_t* to, int64_t stride) {
    if (form.words == 1) {
        for (int64_t q = 0; q < form.quads; ++q) std::memcpy(to + q * stride, levels + 4 * q, 4);
        return;
    }
    // Even and odd inputs apart, as a shift and a mask widen the weights.
    auto both = [](int8_t a, int8_t b) { return uint32_t(uint16_t(a)) | uint32_t(uint16_t(b)) << 16; };
    for (int64_t q = 0; q < form.quads; ++q) {
        const int8_t* quad = levels + 4 * q;
        to[q * stride] = both(quad[0], quad[2]);
        to[q * stride + 1] = both(quad[1], quad[3]);
    }
}

// The levels of one row, and of each group what a level is worth and the sum, `stride` from one group to the next.
void quantise_groups(
    const float* x, const RowForm& form, int8_t* levels, float* worth, int32_t* sums, int64_t stride) {
    std::fill(levels + form.in, levels + std::max(form.in, 4 * form.quads), int8_t(0));
    for (int64_t g = 0; g < form.groups(); ++g) {
        const int64_t first = 4 * form.group * g, count = std::min(4 * form.group, form.in - first);
        worth[g * stride] = quantise(x + first, count, levels + first);
        int32_t sum = 0;
        for (int64_t k = first; k < first + count; ++k) sum += levels[k];
        sums[g * stride] = sum * form.offset;
    }
}

}  // namespace

float quantise(const float* x, int64_t count, int8_t* to) {
    auto get = [&](int64_t k) { return k + LANES <= count ? load(x + k) : load_first(x + k, int(count - k)); };
    uint32_t most = 0;
    for (int64_t k = 0; k < count; k += LANES) most = std::max(most, largest_bits(get(k)));
    float largest;
    std::memcpy(&largest, &most, 4);
    const bool is_finite = most < INFINITE;
    if (!is_finite || largest < SMALLEST) {
        std::fill(to, to + ceil_div(count, LANES) * LANES, int8_t(0));
        return is_finite ? 0.0f : std::numeric_limits<float>::quiet_NaN();
    }
    const V16 factor = set1(LEVELS / largest);
    for (int64_t k = 0; k < count; k += LANES) round_levels(to + k, mul(get(k), factor));
    return largest / LEVELS;
}

QuantisedRows quantise_rows(Pool* pool, const float* x, RowGroups groups, int64_t height, const RowForm& form) {
    thread_local Scratch scratch;
    const int64_t width = form.width(), count = form.groups();
    // The pool's threads must write here and not into scratch of their own.
    uint32_t* words = grown(scratch.levels, groups.rows * width);
    float* worth = grown(scratch.worth, groups.rows * count);
    int32_t* sums = grown(scratch.sums, groups.rows * count);
    for_tiles(pool, groups, height, form.in, [&](int64_t first, int64_t rows) {
        thread_local std::vector<int8_t> own;
        int8_t* levels = grown(own, std::max(4 * form.quads, ceil_div(form.in, LANES) * LANES));
        for (int64_t row = first; row < first + rows; ++row) {
            const int64_t at = first * count + (row - first);
            quantise_groups(x + row * form.in, form, levels, worth + at, sums + at, rows);
            put_words(levels, form, words + first * width + (row - first) * form.words, rows * form.words);
        }
    });
    return {words, worth, sums};
}

}  // namespace ml
