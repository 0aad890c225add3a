// The two forms of keys and values in a block (`kv.h`), and the products with them.
//
// A line is the memory of one step of sixteen sums; a word is what the other side of the product has for that step. A sum
// takes the lines in ascending order, whatever the number of rows and of panels beside it.
#pragma once

#include "pairs.h"
#include "tile.h"

namespace ml {

// The words of MR rows, three to a pointer: an address has a pointer and once or twice the stride, and twelve pointers
// would not fit into the processor's registers.
template <class Word, int MR> struct WordRows {
    static constexpr int POINTERS = (MR + 2) / 3;

    const Word* first[POINTERS];
    int64_t stride;

    inline __attribute__((always_inline)) WordRows(const Word* x, int64_t stride) : stride(stride) {
#pragma GCC unroll 16
        for (int i = 0; i < POINTERS; ++i) first[i] = x + 3 * i * stride;
    }
    inline __attribute__((always_inline)) const Word* row(int r) const { return first[r / 3] + r % 3 * stride; }
    inline __attribute__((always_inline)) void advance(int64_t words) {
#pragma GCC unroll 16
        for (int i = 0; i < POINTERS; ++i) first[i] += words;
    }
};

// One number for each sum, times float32.
struct SingleForm {
    static constexpr int DEPTH = 1;  // numbers of a line for each of its sixteen sums
    using Word = float;

    template <int MR, int P>
    static inline __attribute__((always_inline)) void step(
        const WordRows<Word, MR>& x, const bf16* const* line, V16 (&acc)[MR][P]) {
        V16 weight[P];
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) weight[p] = load_split<bf16>(line[p]);
#pragma GCC unroll 16
        for (int r = 0; r < MR; ++r) {
            const V16 value = set1(*x.row(r));
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) acc[r][p] = fma(value, weight[p], acc[r][p]);
        }
    }
    static V16 join(V16 v) { return ml::join<bf16>(v); }
    static V16 weight(V16 score) { return exp(score); }
    // Writes the words of sixteen floats, and returns the floats as the words have them.
    static V16 put(Word* to, V16 v) {
        store(to, v);
        return v;
    }
};

// Two numbers for each sum, times numbers that are rounded to bfloat16.
struct PairForm {
    static constexpr int DEPTH = 2;
    using Word = uint32_t;

    template <int MR, int P>
    static inline __attribute__((always_inline)) void step(
        const WordRows<Word, MR>& x, const bf16* const* line, V16 (&acc)[MR][P]) {
        Pairs weight[P];
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) weight[p] = load_pairs(line[p]);
        add_all(x, weight, acc);
    }
    // The same with one number of each pair, where the other one belongs to no position of the row.
    template <int MR, int P>
    static inline __attribute__((always_inline)) void half_step(
        const WordRows<Word, MR>& x, const bf16* const* line, bool is_first, V16 (&acc)[MR][P]) {
        Pairs weight[P];
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) weight[p] = one_side(load_pairs(line[p]), is_first);
        add_all(x, weight, acc);
    }
    static V16 join(V16 v) { return v; }
    // e**score for a score of at most zero, relative error below 6e-6, because eight bits of it are kept.
    // Source: as `exp`; the polynomial of degree 4 has the least largest error over half of ln 2 to both sides.
    static V16 weight(V16 score) {
        const V16 x = max(set1(-87.33f), score), magic = set1(12582912.0f);
        const V16 shifted = fma(x, set1(1.44269504088896341f), magic);
        const V16 r = fma(sub(shifted, magic), set1(-0.69314718056f), x);
        V16 p = fma(r, set1(4.127741575e-2f), set1(1.6753559086e-1f));
        p = fma(p, r, set1(5.0005122180e-1f));
        p = add(fma(p, mul(r, r), r), set1(1.0f));
        return mul(p, power_of_two(shifted));
    }
    static V16 put(Word* to, V16 v) { return round_half(to, v); }

  private:
    template <int MR, int P>
    static inline __attribute__((always_inline)) void add_all(
        const WordRows<Word, MR>& x, const Pairs (&weight)[P], V16 (&acc)[MR][P]) {
#pragma GCC unroll 16
        for (int r = 0; r < MR; ++r) {
            const Pairs value = one_pair(x.row(r));
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) acc[r][p] = add_products(acc[r][p], weight[p], value);
        }
    }
};

}  // namespace ml
