// Sixteen int32 sums of products of bytes, on AVX-512, AVX2 (both with VNNI or without), NEON (with products of
// bytes or without) or plain C++.
//
// Weights are unsigned bytes, activations are signed ones. Integer sums are exact and wrap around, so every path gives the
// same numbers in any order.
#pragma once

#include <initializer_list>

#include "simd.h"

namespace ml {

// Sums: sixteen int32.  Quads: four weights for each of sixteen outputs, 64 bytes.  One: four levels of a row for every sum.
//   WORDS          32-bit words that hold four levels of a row for products with bytes: 1, or 2 where they are widened
//   load_quads<J>  the weights of the quads at p that word J of a row's levels is for
//   add_products   sums + the products of such weights with such a word
//   round_levels   sixteen floats within [-127, 127], rounded to nearest even
//   largest_bits   the bits of the largest of |v| and |w|, which are those of an infinity or above where a lane is not finite
//   sum_levels     the sum of the thirty-two levels at p
//
// Weights below sixteen need no widening: thirty-two products of such weights fit into int16.
//   Partial        the sums of up to thirty-two products for each output; `begin` makes it, `end` adds it to the sums
//   load_nibbles   128 weights of four bits: two times sixteen quads; `low` and `high` are those quads
//   add_nibbles    the partial sums + the products with one word of four levels
#if defined(__AVX512F__) && defined(__AVX512BW__)

// The compiler may add integers in any order, and prefers to hold the products of two steps in registers: the sums of a
// tile are then kept in memory, which costs a sixth of the speed. The empty instruction makes it finish each sum.
inline __m512i in_turn(__m512i sum) {
    __asm__("" : "+v"(sum));
    return sum;
}

// A number that several instructions broadcast from memory is loaded once.
inline V16 in_register(V16 v) {
    __asm__("" : "+v"(v.a));
    return v;
}

struct Sums { __m512i a; };
struct Quads { __m512i a; };
struct One { __m512i a; };

inline Sums all_sums(int32_t x) { return {_mm512_set1_epi32(x)}; }
inline V16 to_floats(Sums v) { return {_mm512_cvtepi32_ps(v.a)}; }
inline One one_word(const uint32_t* p) { return {_mm512_set1_epi32(int(*p))}; }
inline void round_levels(int8_t* p, V16 v) {
    _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v.a)));
}
inline uint32_t largest_bits(V16 v, V16 w) {
    const __m512i mask = _mm512_set1_epi32(0x7fffffff);
    return uint32_t(_mm512_reduce_max_epi32(_mm512_max_epi32(
        _mm512_and_si512(_mm512_castps_si512(v.a), mask), _mm512_and_si512(_mm512_castps_si512(w.a), mask))));
}
inline Quads load_nibbles(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
inline Quads low(Quads v) { return {_mm512_and_si512(v.a, _mm512_set1_epi8(15))}; }
inline Quads high(Quads v) { return {_mm512_and_si512(_mm512_srli_epi16(v.a, 4), _mm512_set1_epi8(15))}; }

#if defined(__AVX512VNNI__)

constexpr int WORDS = 1;
using Partial = Sums;

template <int J> inline Quads load_quads(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
inline Sums add_products(Sums sums, Quads w, One x) { return {in_turn(_mm512_dpbusd_epi32(sums.a, w.a, x.a))}; }
inline Partial begin(Sums sums) { return sums; }
inline Sums end(Sums, Partial part) { return part; }
inline Partial add_nibbles(Partial part, Quads w, One x) { return add_products(part, w, x); }

#else

constexpr int WORDS = 2;
struct Partial { __m512i a; };

template <int J> inline Quads load_quads(const uint8_t* p) {
    __m512i bytes = _mm512_loadu_si512(p);
    return {J ? _mm512_srli_epi16(bytes, 8) : _mm512_and_si512(bytes, _mm512_set1_epi16(255))};
}
inline Sums add_products(Sums sums, Quads w, One x) {
    return {in_turn(_mm512_add_epi32(sums.a, _mm512_madd_epi16(w.a, x.a)))};
}
inline Partial begin(Sums) { return {_mm512_setzero_si512()}; }
inline Sums end(Sums sums, Partial part) {
    return {_mm512_add_epi32(sums.a, _mm512_madd_epi16(part.a, _mm512_set1_epi16(1)))};
}
inline Partial add_nibbles(Partial part, Quads w, One x) {
    return {in_turn(_mm512_add_epi16(part.a, _mm512_maddubs_epi16(w.a, x.a)))};
}

#endif

#elif defined(__AVX2__) && defined(__FMA__) && !defined(__AVX512F__)

inline __m256i in_turn(__m256i sum) {  // as above
    __asm__("" : "+x"(sum));
    return sum;
}

inline V16 in_register(V16 v) { return v; }

struct Sums { __m256i a, b; };
struct Quads { __m256i a, b; };
struct One { __m256i a; };

inline Sums all_sums(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline V16 to_floats(Sums v) { return {_mm256_cvtepi32_ps(v.a), _mm256_cvtepi32_ps(v.b)}; }
inline One one_word(const uint32_t* p) { return {_mm256_set1_epi32(int(*p))}; }
inline void round_levels(int8_t* p, V16 v) {
    // packs alternates between the halves of its arguments; the permutation restores the order of the four quarters.
    __m256i mixed = _mm256_packs_epi32(_mm256_cvtps_epi32(v.a), _mm256_cvtps_epi32(v.b));
    __m256i words = _mm256_permute4x64_epi64(mixed, 0xd8);
    _mm_storeu_si128((__m128i*)p, _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}
inline uint32_t largest_bits(V16 v, V16 w) {
    auto most = [](__m256 x, __m256 y) {
        const __m256i mask = _mm256_set1_epi32(0x7fffffff);
        return _mm256_max_epi32(
            _mm256_and_si256(_mm256_castps_si256(x), mask), _mm256_and_si256(_mm256_castps_si256(y), mask));
    };
    __m256i eight = _mm256_max_epi32(most(v.a, v.b), most(w.a, w.b));
    __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    __m128i two = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return uint32_t(_mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32(two, 0xb1))));
}
inline Quads load_whole(const uint8_t* p) {
    return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 32))};
}
inline Quads load_nibbles(const uint8_t* p) { return load_whole(p); }
inline Quads low(Quads v) {
    const __m256i mask = _mm256_set1_epi8(15);
    return {_mm256_and_si256(v.a, mask), _mm256_and_si256(v.b, mask)};
}
inline Quads high(Quads v) { return low({_mm256_srli_epi16(v.a, 4), _mm256_srli_epi16(v.b, 4)}); }

#if defined(__AVXVNNI__)

constexpr int WORDS = 1;
using Partial = Sums;

template <int J> inline Quads load_quads(const uint8_t* p) { return load_whole(p); }
inline Sums add_products(Sums sums, Quads w, One x) {
    return {_mm256_dpbusd_avx_epi32(sums.a, w.a, x.a), _mm256_dpbusd_avx_epi32(sums.b, w.b, x.a)};
}
inline Partial begin(Sums sums) { return sums; }
inline Sums end(Sums, Partial part) { return part; }
inline Partial add_nibbles(Partial part, Quads w, One x) { return add_products(part, w, x); }

#else

constexpr int WORDS = 2;
struct Partial { __m256i a, b; };

template <int J> inline Quads load_quads(const uint8_t* p) {
    Quads bytes = load_whole(p);
    if constexpr (J == 1) return {_mm256_srli_epi16(bytes.a, 8), _mm256_srli_epi16(bytes.b, 8)};
    const __m256i mask = _mm256_set1_epi16(255);
    return {_mm256_and_si256(bytes.a, mask), _mm256_and_si256(bytes.b, mask)};
}
inline Sums add_products(Sums sums, Quads w, One x) {
    return {in_turn(_mm256_add_epi32(sums.a, _mm256_madd_epi16(w.a, x.a))),
            in_turn(_mm256_add_epi32(sums.b, _mm256_madd_epi16(w.b, x.a)))};
}
inline Partial begin(Sums) { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline Sums end(Sums sums, Partial part) {
    const __m256i ones = _mm256_set1_epi16(1);
    return {_mm256_add_epi32(sums.a, _mm256_madd_epi16(part.a, ones)),
            _mm256_add_epi32(sums.b, _mm256_madd_epi16(part.b, ones))};
}
inline Partial add_nibbles(Partial part, Quads w, One x) {
    return {in_turn(_mm256_add_epi16(part.a, _mm256_maddubs_epi16(w.a, x.a))),
            in_turn(_mm256_add_epi16(part.b, _mm256_maddubs_epi16(w.b, x.a)))};
}

#endif

#elif defined(__aarch64__)

inline V16 in_register(V16 v) { return v; }

constexpr int WORDS = 1;
struct Sums { int32x4_t a, b, c, d; };
struct Quads { uint8x16_t a, b, c, d; };
using Partial = Sums;

inline Sums all_sums(int32_t x) { int32x4_t v = vdupq_n_s32(x); return {v, v, v, v}; }
inline V16 to_floats(Sums v) { return {vcvtq_f32_s32(v.a), vcvtq_f32_s32(v.b), vcvtq_f32_s32(v.c), vcvtq_f32_s32(v.d)}; }
inline void round_levels(int8_t* p, V16 v) {
    auto eight = [](float32x4_t x, float32x4_t y) {
        return vmovn_s16(vcombine_s16(vmovn_s32(vcvtnq_s32_f32(x)), vmovn_s32(vcvtnq_s32_f32(y))));
    };
    vst1q_s8(p, vcombine_s8(eight(v.a, v.b), eight(v.c, v.d)));
}
inline uint32_t largest_bits(V16 v, V16 w) {
    auto most = [](float32x4_t x, float32x4_t y) {
        const uint32x4_t mask = vdupq_n_u32(0x7fffffffu);
        return vmaxq_u32(vandq_u32(vreinterpretq_u32_f32(x), mask), vandq_u32(vreinterpretq_u32_f32(y), mask));
    };
    return vmaxvq_u32(vmaxq_u32(vmaxq_u32(most(v.a, v.b), most(v.c, v.d)), vmaxq_u32(most(w.a, w.b), most(w.c, w.d))));
}
inline Quads load_nibbles(const uint8_t* p) { return {vld1q_u8(p), vld1q_u8(p + 16), vld1q_u8(p + 32), vld1q_u8(p + 48)}; }
inline Quads low(Quads v) {
    const uint8x16_t mask = vdupq_n_u8(15);
    return {vandq_u8(v.a, mask), vandq_u8(v.b, mask), vandq_u8(v.c, mask), vandq_u8(v.d, mask)};
}
inline Quads high(Quads v) { return {vshrq_n_u8(v.a, 4), vshrq_n_u8(v.b, 4), vshrq_n_u8(v.c, 4), vshrq_n_u8(v.d, 4)}; }
inline Partial begin(Sums sums) { return sums; }
inline Sums end(Sums, Partial part) { return part; }
// f of each quarter of the sums and of the weights.
template <class F> inline Sums quarters(F f, Sums sums, Quads w) {
    return {f(sums.a, w.a), f(sums.b, w.b), f(sums.c, w.c), f(sums.d, w.d)};
}
inline int8x16_t four_levels(const uint32_t* p) { return vreinterpretq_s8_u32(vdupq_n_u32(*p)); }

#if defined(__ARM_FEATURE_MATMUL_INT8)

struct One { int8x16_t a; };

inline One one_word(const uint32_t* p) { return {four_levels(p)}; }
template <int J> inline Quads load_quads(const uint8_t* p) { return load_nibbles(p); }
inline Sums add_products(Sums sums, Quads w, One x) {
    return quarters([&](int32x4_t sum, uint8x16_t v) { return vusdotq_s32(sum, v, x.a); }, sums, w);
}
inline Partial add_nibbles(Partial part, Quads w, One x) { return add_products(part, w, x); }

#elif defined(__ARM_FEATURE_DOTPROD)

// The instruction multiplies signed bytes. A weight above 127 needs that, so that 128 is subtracted from each; `rest` holds
// 128 times the sum of the four levels, for each sum.
struct One { int8x16_t a; int32x4_t rest; };

inline One one_word(const uint32_t* p) {
    const int8x16_t levels = four_levels(p);
    return {levels, vshlq_n_s32(vdotq_s32(vdupq_n_s32(0), levels, vdupq_n_s8(64)), 1)};
}
template <int J> inline Quads load_quads(const uint8_t* p) {
    const uint8x16_t flip = vdupq_n_u8(128);
    const Quads w = load_nibbles(p);
    return {veorq_u8(w.a, flip), veorq_u8(w.b, flip), veorq_u8(w.c, flip), veorq_u8(w.d, flip)};
}
inline Sums add_products(Sums sums, Quads w, One x) {
    return quarters([&](int32x4_t sum, uint8x16_t v) {
        return vdotq_s32(vaddq_s32(sum, x.rest), vreinterpretq_s8_u8(v), x.a);
    }, sums, w);
}
inline Partial add_nibbles(Partial part, Quads w, One x) {
    return quarters([&](int32x4_t sum, uint8x16_t v) { return vdotq_s32(sum, vreinterpretq_s8_u8(v), x.a); }, part, w);
}

#else

struct One { int8x16_t a; };

inline One one_word(const uint32_t* p) { return {four_levels(p)}; }
template <int J> inline Quads load_quads(const uint8_t* p) { return load_nibbles(p); }
inline Sums add_products(Sums sums, Quads w, One x) {
    const int16x8_t levels = vmovl_s8(vget_low_s8(x.a));  // two times the same four
    return quarters([&](int32x4_t sum, uint8x16_t v) {
        auto two = [&](uint8x8_t bytes) {
            const int16x8_t wide = vreinterpretq_s16_u16(vmovl_u8(bytes));
            return vpaddq_s32(vmull_s16(vget_low_s16(wide), vget_low_s16(levels)), vmull_high_s16(wide, levels));
        };
        return vaddq_s32(sum, vpaddq_s32(two(vget_low_u8(v)), two(vget_high_u8(v))));
    }, sums, w);
}
// Two products of a weight below sixteen fit into int16.
inline Partial add_nibbles(Partial part, Quads w, One x) {
    return quarters([&](int32x4_t sum, uint8x16_t v) {
        const int8x16_t bytes = vreinterpretq_s8_u8(v);
        const int16x8_t first = vmull_s8(vget_low_s8(bytes), vget_low_s8(x.a)), second = vmull_high_s8(bytes, x.a);
        return vpadalq_s16(sum, vpaddq_s16(first, second));
    }, part, w);
}

#endif

#else

inline V16 in_register(V16 v) { return v; }

constexpr int WORDS = 1;
struct Sums { uint32_t v[LANES]; };  // unsigned, since its overflow is defined
struct Quads { uint8_t v[4 * LANES]; };
struct One { int8_t v[4]; };
using Partial = Sums;

inline Sums all_sums(int32_t x) {
    Sums out;
    for (uint32_t& sum : out.v) sum = uint32_t(x);
    return out;
}
inline V16 to_floats(Sums v) { return each([&](int i) { return float(int32_t(v.v[i])); }); }
inline One one_word(const uint32_t* p) {
    One out;
    std::memcpy(out.v, p, 4);
    return out;
}
inline void round_levels(int8_t* p, V16 v) {
    V16 magic = set1(12582912.0f);  // 1.5 * 2**23: adding it rounds to the nearest integer
    V16 rounded = sub(add(v, magic), magic);
    for (int i = 0; i < LANES; ++i) p[i] = int8_t(rounded.v[i]);
}
inline uint32_t largest_bits(V16 v, V16 w) {
    uint32_t most = 0;
    for (const V16& part : {v, w})
        for (float lane : part.v) {
            uint32_t bits;
            std::memcpy(&bits, &lane, 4);
            bits &= 0x7fffffffu;
            most = bits > most ? bits : most;
        }
    return most;
}
inline Quads load_nibbles(const uint8_t* p) {
    Quads out;
    std::memcpy(out.v, p, sizeof out.v);
    return out;
}
template <int J> inline Quads load_quads(const uint8_t* p) { return load_nibbles(p); }
inline Quads low(Quads v) {
    for (uint8_t& byte : v.v) byte = uint8_t(byte & 15);
    return v;
}
inline Quads high(Quads v) {
    for (uint8_t& byte : v.v) byte = uint8_t(byte >> 4);
    return v;
}
inline Sums add_products(Sums sums, Quads w, One x) {
    for (int i = 0; i < LANES; ++i)
        for (int k = 0; k < 4; ++k) sums.v[i] += uint32_t(int32_t(w.v[4 * i + k]) * x.v[k]);
    return sums;
}
inline Partial begin(Sums sums) { return sums; }
inline Sums end(Sums, Partial part) { return part; }
inline Partial add_nibbles(Partial part, Quads w, One x) { return add_products(part, w, x); }

#endif

inline int32_t sum_levels(const int8_t* p) {
#if defined(__AVX2__)
    // The instruction adds unsigned bytes in eights; flipped signs make levels 128 more.
    const __m256i flipped = _mm256_xor_si256(_mm256_loadu_si256((const __m256i*)p), _mm256_set1_epi8(-128));
    const __m256i four = _mm256_sad_epu8(flipped, _mm256_setzero_si256());
    const __m128i two = _mm_add_epi32(_mm256_castsi256_si128(four), _mm256_extracti128_si256(four, 1));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_unpackhi_epi64(two, two))) - 32 * 128;
#else
    int32_t sum = 0;
    for (int i = 0; i < 32; ++i) sum += p[i];
    return sum;
#endif
}

}  // namespace ml
