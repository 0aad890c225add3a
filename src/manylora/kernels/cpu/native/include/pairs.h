// Two bfloat16 for each of sixteen sums, and their products.
#pragma once

#include "simd.h"

namespace ml {

//   add_products  sum[i] + w[i].second * x[i].second, rounded, + w[i].first * x[i].first, rounded: two fused
//                 multiply-adds, the odd input first
//   one_side      the pairs with a zero in place of the first or of the second number, whatever that number is
//   round_pairs   sixteen pairs from thirty-two floats, rounded to nearest even; a NaN stays one
//   round_half    eight pairs from sixteen floats, in the same way; returns the sixteen rounded floats
//
// The instruction vdpbf16ps computes this (Source: Intel SDM, volume 2, VDPBF16PS: float32 multiply-adds rounded to nearest
// even, independent of MXCSR; a Zen 4 gave the same bits for two million random operands). It treats denormal weights,
// activations and sums, below 1.2e-38, as zeros, and so does the conversion (VCVTNE2PS2BF16). The other branch, for tests
// on any processor, keeps denormals and has the same results otherwise.
#if defined(__AVX512BF16__)

constexpr bool HAS_PRODUCTS = true;
struct Pairs { __m512bh a; };

inline Pairs load_pairs(const bf16* p) { return {(__m512bh)_mm512_loadu_si512(p)}; }
inline Pairs one_pair(const uint32_t* p) { return {(__m512bh)_mm512_set1_epi32(int(*p))}; }
inline V16 add_products(V16 sum, Pairs w, Pairs x) { return {_mm512_dpbf16_ps(sum.a, w.a, x.a)}; }
inline Pairs one_side(Pairs w, bool is_first) {
    const __m512i mask = _mm512_set1_epi32(is_first ? 0xffff : int(0xffff0000));
    return {(__m512bh)_mm512_and_si512((__m512i)w.a, mask)};
}
inline void round_pairs(uint32_t* p, V16 low, V16 high) {
    _mm512_storeu_si512(p, (__m512i)_mm512_cvtne2ps_pbh(high.a, low.a));
}
inline V16 round_half(uint32_t* p, V16 v) {
    const __m256i halves = (__m256i)_mm512_cvtneps_pbh(v.a);
    _mm256_storeu_si256((__m256i*)p, halves);
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16))};
}

#else

constexpr bool HAS_PRODUCTS = false;
struct Pairs { V16 first, second; };

inline Pairs load_pairs(const bf16* p) {
    float first[LANES], second[LANES];
    for (int i = 0; i < LANES; ++i) first[i] = to_float(p[2 * i]), second[i] = to_float(p[2 * i + 1]);
    return {load(first), load(second)};
}
inline Pairs one_pair(const uint32_t* p) { return {set1(to_float(bf16(*p))), set1(to_float(bf16(*p >> 16)))}; }
inline V16 add_products(V16 sum, Pairs w, Pairs x) { return fma(w.first, x.first, fma(w.second, x.second, sum)); }
inline Pairs one_side(Pairs w, bool is_first) {
    return is_first ? Pairs{w.first, zero()} : Pairs{zero(), w.second};
}
inline V16 round_half(uint32_t* p, V16 v) {
    float values[LANES];
    store(values, v);
    for (int i = 0; i < LANES / 2; ++i) p[i] = to_bf16(values[2 * i]) | uint32_t(to_bf16(values[2 * i + 1])) << 16;
    for (float& value : values) value = to_float(to_bf16(value));
    return load(values);
}
inline void round_pairs(uint32_t* p, V16 low, V16 high) {
    round_half(p, low);
    round_half(p + LANES / 2, high);
}

#endif

}  // namespace ml
