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

constexpr int64_t GROUP = 4 * GROUP_QUADS;

// Factor from elements to levels of a group whose largest element has these bits, and what a level is worth.
struct Scale {
    float factor, worth;

    explicit Scale(uint32_t bits) {
        float largest;
        std::memcpy(&largest, &bits, 4);
        const bool counts = bits < INFINITE && largest >= SMALLEST;
        factor = counts ? LEVELS / largest : 0.0f;
        worth = counts ? largest / LEVELS : bits < INFINITE ? 0.0f : std::numeric_limits<float>::quiet_NaN();
    }
};

// The levels of `count` elements, of which a scale is already known; zeros up to the next multiple of sixteen.
void put_levels(const float* x, int64_t count, const Scale& scale, int8_t* to) {
    if (scale.factor == 0.0f) return void(std::fill(to, to + ceil_div(count, LANES) * LANES, int8_t(0)));
    const V16 factor = set1(scale.factor);
    for (int64_t k = 0; k < count; k += LANES)
        round_levels(to + k, mul(k + LANES <= count ? load(x + k) : load_first(x + k, int(count - k)), factor));
}

// The levels of one row, and of each group what a level is worth and the sum, `stride` from one group to the next.
void quantise_groups(
    const float* x, const RowForm& form, int8_t* levels, float* worth, int32_t* sums, int64_t stride) {
    const int64_t whole = form.in / GROUP;
    for (int64_t g = 0; g < whole; ++g) {
        const float* own = x + g * GROUP;
        const Scale scale(largest_bits(load(own), load(own + LANES)));
        put_levels(own, GROUP, scale, levels + g * GROUP);
        worth[g * stride] = scale.worth;
    }
    if (whole < form.groups()) {
        std::fill(levels + whole * GROUP, levels + form.groups() * GROUP, int8_t(0));
        worth[whole * stride] = quantise(x + whole * GROUP, form.in - whole * GROUP, levels + whole * GROUP);
    }
    for (int64_t g = 0; g < form.groups(); ++g) sums[g * stride] = sum_levels(levels + g * GROUP) * form.offset;
}

}  // namespace

float quantise(const float* x, int64_t count, int8_t* to) {
    uint32_t most = 0;
    for (int64_t k = 0; k < count; k += LANES) {
        const V16 value = k + LANES <= count ? load(x + k) : load_first(x + k, int(count - k));
        most = std::max(most, largest_bits(value, value));
    }
    const Scale scale(most);
    put_levels(x, count, scale, to);
    return scale.worth;
}

QuantisedRows quantise_rows(Pool* pool, const float* x, RowGroups groups, TileHeight height, const RowForm& form) {
    thread_local Scratch scratch;
    const int64_t width = form.width(), count = form.groups();
    // The pool's threads must write here and not into scratch of their own.
    uint32_t* words = grown(scratch.levels, groups.rows * width);
    float* worth = grown(scratch.worth, groups.rows * count);
    int32_t* sums = grown(scratch.sums, groups.rows * count);
    for_tiles(pool, groups, height, form.in, [&](int64_t first, int64_t rows) {
        thread_local std::vector<int8_t> own;
        int8_t* levels = grown(own, count * GROUP);
        for (int64_t row = first; row < first + rows; ++row) {
            const int64_t at = first * count + (row - first);
            quantise_groups(x + row * form.in, form, levels, worth + at, sums + at, rows);
            put_words(levels, form, words + first * width + (row - first) * form.words, rows * form.words);
        }
    });
    return {words, worth, sums};
}

}  // namespace ml
