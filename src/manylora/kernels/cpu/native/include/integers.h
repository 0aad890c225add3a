// Sixteen int32 sums of products of int16 pairs, on AVX-512, AVX2 or plain C++.
//
// Integer sums are exact, so every path gives the same numbers: here the order of accumulation is free.
#pragma once

#include "simd.h"

namespace ml {

// Sums: sixteen int32.  Pairs: sixteen pairs of int16, one pair for each sum.
//   load_pairs    sixteen pairs of int8, widened
//   one_pair      the pair at p for every sum
//   add_products  sums[i] + w[i].first * x[i].first + w[i].second * x[i].second
//   round_store   sixteen floats within int16, rounded to nearest even
#if defined(__AVX512F__) && defined(__AVX512BW__)

// The compiler may add integers in any order, and prefers to hold the products of two steps in registers: the sums of a
// tile are then kept in memory, which costs a sixth of the speed. The empty instruction makes it finish each sum.
inline __m512i in_turn(__m512i sum) {
    __asm__("" : "+v"(sum));
    return sum;
}

struct Sums { __m512i a; };
struct Pairs { __m512i a; };

inline Sums no_sums() { return {_mm512_setzero_si512()}; }
inline Sums load_sums(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
inline void store(int32_t* p, Sums v) { _mm512_storeu_si512(p, v.a); }
inline V16 to_floats(Sums v) { return {_mm512_cvtepi32_ps(v.a)}; }
inline Pairs load_pairs(const int8_t* p) { return {_mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)p))}; }
inline Pairs one_pair(const int16_t* p) {
    int32_t both;
    std::memcpy(&both, p, 4);
    return {_mm512_set1_epi32(both)};
}
inline Sums add_products(Sums sums, Pairs w, Pairs x) {
#if defined(__AVX512VNNI__)
    return {_mm512_dpwssd_epi32(sums.a, w.a, x.a)};
#else
    return {in_turn(_mm512_add_epi32(sums.a, _mm512_madd_epi16(w.a, x.a)))};
#endif
}
inline void round_store(int16_t* p, V16 v) {
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(v.a)));
}

#elif defined(__AVX2__) && defined(__FMA__) && !defined(__AVX512F__)

inline __m256i in_turn(__m256i sum) {  // as above
    __asm__("" : "+x"(sum));
    return sum;
}

struct Sums { __m256i a, b; };
struct Pairs { __m256i a, b; };

inline Sums no_sums() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline Sums load_sums(const int32_t* p) {
    return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 8))};
}
inline void store(int32_t* p, Sums v) {
    _mm256_storeu_si256((__m256i*)p, v.a);
    _mm256_storeu_si256((__m256i*)(p + 8), v.b);
}
inline V16 to_floats(Sums v) { return {_mm256_cvtepi32_ps(v.a), _mm256_cvtepi32_ps(v.b)}; }
inline Pairs load_pairs(const int8_t* p) {
    return {_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)p)),
            _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)(p + 16)))};
}
inline Pairs one_pair(const int16_t* p) {
    int32_t both;
    std::memcpy(&both, p, 4);
    __m256i v = _mm256_set1_epi32(both);
    return {v, v};
}
inline Sums add_products(Sums sums, Pairs w, Pairs x) {
#if defined(__AVXVNNI__)
    return {_mm256_dpwssd_avx_epi32(sums.a, w.a, x.a), _mm256_dpwssd_avx_epi32(sums.b, w.b, x.b)};
#else
    return {in_turn(_mm256_add_epi32(sums.a, _mm256_madd_epi16(w.a, x.a))),
            in_turn(_mm256_add_epi32(sums.b, _mm256_madd_epi16(w.b, x.b)))};
#endif
}
inline void round_store(int16_t* p, V16 v) {
    // packs alternates between the halves of its arguments; the permutation restores the order of the four quarters.
    __m256i mixed = _mm256_packs_epi32(_mm256_cvtps_epi32(v.a), _mm256_cvtps_epi32(v.b));
    _mm256_storeu_si256((__m256i*)p, _mm256_permute4x64_epi64(mixed, 0xd8));
}

#else

struct Sums { int32_t v[LANES]; };
struct Pairs { int16_t v[2 * LANES]; };

inline Sums no_sums() { return {}; }
inline Sums load_sums(const int32_t* p) {
    Sums out;
    std::memcpy(out.v, p, sizeof out.v);
    return out;
}
inline void store(int32_t* p, Sums v) { std::memcpy(p, v.v, sizeof v.v); }
inline V16 to_floats(Sums v) {
    float out[LANES];
    for (int i = 0; i < LANES; ++i) out[i] = float(v.v[i]);
    return load(out);
}
inline Pairs load_pairs(const int8_t* p) {
    Pairs out;
    for (int i = 0; i < 2 * LANES; ++i) out.v[i] = p[i];
    return out;
}
inline Pairs one_pair(const int16_t* p) {
    Pairs out;
    for (int i = 0; i < 2 * LANES; ++i) out.v[i] = p[i % 2];
    return out;
}
inline Sums add_products(Sums sums, Pairs w, Pairs x) {
    for (int i = 0; i < LANES; ++i)
        sums.v[i] += int32_t(w.v[2 * i]) * x.v[2 * i] + int32_t(w.v[2 * i + 1]) * x.v[2 * i + 1];
    return sums;
}
inline void round_store(int16_t* p, V16 v) {
    float rounded[LANES];
    V16 magic = set1(12582912.0f);  // 1.5 * 2**23: adding it rounds to the nearest integer
    store(rounded, sub(add(v, magic), magic));
    for (int i = 0; i < LANES; ++i) p[i] = int16_t(rounded[i]);
}

#endif

// The first `count` (< 16) sums, zeros after them; memory after them is not accessed.
inline Sums load_first(const int32_t* p, int count) {
    int32_t padded[LANES] = {};
    std::memcpy(padded, p, size_t(count) * 4);
    return load_sums(padded);
}
inline void store_first(int32_t* p, Sums v, int count) {
    int32_t whole[LANES];
    store(whole, v);
    std::memcpy(p, whole, size_t(count) * 4);
}

}  // namespace ml
