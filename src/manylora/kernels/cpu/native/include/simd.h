// Sixteen float32 lanes on AVX-512, AVX2, NEON or plain C++, with the same bits on all four.
//
// Every operation is defined lane by lane, fused multiply-adds are always written out, and sums across lanes have one
// fixed order. So a kernel written with V16 has one accumulation order whatever the machine, the batch or the thread.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__FMA__))
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace ml {

using bf16 = uint16_t;
using fp16 = uint16_t;  // IEEE 754 binary16
constexpr int LANES = 16;

inline float to_float(bf16 value) {
    uint32_t bits = uint32_t(value) << 16;
    float out;
    std::memcpy(&out, &bits, 4);
    return out;
}
inline float to_float(float value) { return value; }

// The exponent is rebased by a multiplication, which also gives denormals their value; infinities and NaNs stay what they are.
inline float half_to_float(fp16 value) {
    uint32_t bits = uint32_t(value & 0x7fff) << 13;
    float out;
    std::memcpy(&out, &bits, 4);
    out *= 5.192296858534828e33f;  // 2**112
    std::memcpy(&bits, &out, 4);
    if ((value & 0x7c00) == 0x7c00) bits = 0x7f800000u | uint32_t(value & 0x3ff) << 13;
    bits |= uint32_t(value & 0x8000) << 16;
    std::memcpy(&out, &bits, 4);
    return out;
}

// Round to nearest even; a NaN stays a (quiet) NaN.
inline bf16 to_bf16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    // Both results first, so that a compiler rounds many values side by side.
    const uint32_t quiet = bits >> 16 | 0x40, rounded = (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
    return bf16((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
}

// "Split order" is the order in which sixteen bf16 fall apart most cheaply into two registers. Lanes are independent in
// a product, so a kernel accumulates in split order and calls `join` once at the end. load_split<W> and join<W> agree.

#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__FMA__))
inline float max_of_8(__m256 v) {
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
}
#endif

#if defined(__AVX512F__)

#if defined(__AVX512BF16__)
constexpr const char* ISA = "avx512-bf16";
#else
constexpr const char* ISA = "avx512";
#endif
struct V16 { __m512 a; };

inline V16 zero() { return {_mm512_setzero_ps()}; }
inline V16 set1(float x) { return {_mm512_set1_ps(x)}; }
inline V16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, V16 v) { _mm512_storeu_ps(p, v.a); }
inline V16 add(V16 x, V16 y) { return {_mm512_add_ps(x.a, y.a)}; }
inline V16 sub(V16 x, V16 y) { return {_mm512_sub_ps(x.a, y.a)}; }
inline V16 mul(V16 x, V16 y) { return {_mm512_mul_ps(x.a, y.a)}; }
inline V16 div(V16 x, V16 y) { return {_mm512_div_ps(x.a, y.a)}; }
inline V16 fma(V16 x, V16 y, V16 z) { return {_mm512_fmadd_ps(x.a, y.a, z.a)}; }
// max and min return y where either is NaN, as the x86 instructions do.
inline V16 max(V16 x, V16 y) { return {_mm512_max_ps(x.a, y.a)}; }
inline V16 min(V16 x, V16 y) { return {_mm512_min_ps(x.a, y.a)}; }
// Lanes [lo, hi) of x, the others of y.
inline V16 select(int lo, int hi, V16 x, V16 y) {
    __mmask16 mask = __mmask16(((1u << hi) - 1) & ~((1u << lo) - 1));
    return {_mm512_mask_blend_ps(mask, y.a, x.a)};
}
inline V16 load_bf16(const bf16* p) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
inline V16 load_fp16(const fp16* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))}; }
template <class W> V16 load_split(const W* p);
template <> inline V16 load_split<float>(const float* p) { return load(p); }
template <> inline V16 load_split<bf16>(const bf16* p) { return load_bf16(p); }
template <class W> inline V16 join(V16 v) { return v; }
template <class W> inline V16 split(V16 v) { return v; }
// Returns 2**n for magic_sum = 1.5 * 2**23 + n.
inline V16 power_of_two(V16 magic_sum) {
    __m512i n = _mm512_sub_epi32(_mm512_castps_si512(magic_sum.a), _mm512_set1_epi32(0x4b400000 - 127));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(n, 23))};
}
inline void fold_to_8(V16 v, float* out) {
    __m256 low = _mm512_castps512_ps256(v.a);
    __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v.a), 1));
    _mm256_storeu_ps(out, _mm256_add_ps(low, high));
}
// The largest lane, none of which is a NaN.
inline float max_lanes(V16 v) {
    __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v.a), 1));
    return max_of_8(_mm256_max_ps(_mm512_castps512_ps256(v.a), high));
}

#elif defined(__AVX2__) && defined(__FMA__)

constexpr const char* ISA = "avx2";
struct V16 { __m256 a, b; };

inline V16 zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline V16 set1(float x) { __m256 v = _mm256_set1_ps(x); return {v, v}; }
inline V16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, V16 v) { _mm256_storeu_ps(p, v.a); _mm256_storeu_ps(p + 8, v.b); }
inline V16 add(V16 x, V16 y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline V16 sub(V16 x, V16 y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline V16 mul(V16 x, V16 y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline V16 div(V16 x, V16 y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline V16 fma(V16 x, V16 y, V16 z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
inline V16 max(V16 x, V16 y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline V16 min(V16 x, V16 y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline V16 select(int lo, int hi, V16 x, V16 y) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    auto half = [&](int base, __m256 p, __m256 q) {
        __m256i above = _mm256_cmpgt_epi32(lane, _mm256_set1_epi32(lo - base - 1));
        __m256i below = _mm256_cmpgt_epi32(_mm256_set1_epi32(hi - base), lane);
        return _mm256_blendv_ps(q, p, _mm256_castsi256_ps(_mm256_and_si256(above, below)));
    };
    return {half(0, x.a, y.a), half(8, x.b, y.b)};
}
inline V16 load_bf16(const bf16* p) {
    auto half = [](const bf16* q) {
        __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)q));
        return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
    };
    return {half(p), half(p + 8)};
}
inline V16 load_fp16(const fp16* p) {
#if defined(__F16C__)
    return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8)))};
#else
    float wide[LANES];
    for (int i = 0; i < LANES; ++i) wide[i] = half_to_float(p[i]);
    return load(wide);
#endif
}
template <class W> V16 load_split(const W* p);
template <> inline V16 load_split<float>(const float* p) { return load(p); }
// Even lanes in a, odd lanes in b: one shift and one mask.
template <> inline V16 load_split<bf16>(const bf16* p) {
    __m256i pairs = _mm256_loadu_si256((const __m256i*)p);
    return {_mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)),
            _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(int(0xffff0000))))};
}
template <class W> V16 join(V16 v);
template <> inline V16 join<float>(V16 v) { return v; }
template <> inline V16 join<bf16>(V16 v) {
    __m256 low = _mm256_unpacklo_ps(v.a, v.b), high = _mm256_unpackhi_ps(v.a, v.b);
    return {_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31)};
}
template <class W> V16 split(V16 v);
template <> inline V16 split<float>(V16 v) { return v; }
template <> inline V16 split<bf16>(V16 v) {
    __m256 low = _mm256_permute2f128_ps(v.a, v.b, 0x20), high = _mm256_permute2f128_ps(v.a, v.b, 0x31);
    return {_mm256_shuffle_ps(low, high, 0x88), _mm256_shuffle_ps(low, high, 0xdd)};
}
inline V16 power_of_two(V16 magic_sum) {
    auto half = [](__m256 m) {
        __m256i n = _mm256_sub_epi32(_mm256_castps_si256(m), _mm256_set1_epi32(0x4b400000 - 127));
        return _mm256_castsi256_ps(_mm256_slli_epi32(n, 23));
    };
    return {half(magic_sum.a), half(magic_sum.b)};
}
inline void fold_to_8(V16 v, float* out) { _mm256_storeu_ps(out, _mm256_add_ps(v.a, v.b)); }
inline float max_lanes(V16 v) { return max_of_8(_mm256_max_ps(v.a, v.b)); }

#elif defined(__aarch64__)

constexpr const char* ISA = "neon";
struct V16 { float32x4_t a, b, c, d; };

inline V16 zero() { float32x4_t v = vdupq_n_f32(0.0f); return {v, v, v, v}; }
inline V16 set1(float x) { float32x4_t v = vdupq_n_f32(x); return {v, v, v, v}; }
inline V16 load(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}; }
inline void store(float* p, V16 v) {
    vst1q_f32(p, v.a), vst1q_f32(p + 4, v.b), vst1q_f32(p + 8, v.c), vst1q_f32(p + 12, v.d);
}
// f of each quarter of the arguments.
template <class F, class... V> inline V16 quarters(F f, V... v) { return {f(v.a...), f(v.b...), f(v.c...), f(v.d...)}; }
inline V16 add(V16 x, V16 y) { return {vaddq_f32(x.a, y.a), vaddq_f32(x.b, y.b), vaddq_f32(x.c, y.c), vaddq_f32(x.d, y.d)}; }
inline V16 sub(V16 x, V16 y) { return {vsubq_f32(x.a, y.a), vsubq_f32(x.b, y.b), vsubq_f32(x.c, y.c), vsubq_f32(x.d, y.d)}; }
inline V16 mul(V16 x, V16 y) { return {vmulq_f32(x.a, y.a), vmulq_f32(x.b, y.b), vmulq_f32(x.c, y.c), vmulq_f32(x.d, y.d)}; }
inline V16 div(V16 x, V16 y) { return {vdivq_f32(x.a, y.a), vdivq_f32(x.b, y.b), vdivq_f32(x.c, y.c), vdivq_f32(x.d, y.d)}; }
inline V16 fma(V16 x, V16 y, V16 z) {
    return {vfmaq_f32(z.a, x.a, y.a), vfmaq_f32(z.b, x.b, y.b), vfmaq_f32(z.c, x.c, y.c), vfmaq_f32(z.d, x.d, y.d)};
}
inline V16 max(V16 x, V16 y) {
    return quarters([](float32x4_t p, float32x4_t q) { return vbslq_f32(vcgtq_f32(p, q), p, q); }, x, y);
}
inline V16 min(V16 x, V16 y) {
    return quarters([](float32x4_t p, float32x4_t q) { return vbslq_f32(vcltq_f32(p, q), p, q); }, x, y);
}
inline V16 select(int lo, int hi, V16 x, V16 y) {
    const int32_t first[4] = {0, 1, 2, 3};
    const int32x4_t lane = vld1q_s32(first);
    auto quarter = [&](int base, float32x4_t p, float32x4_t q) {
        uint32x4_t inside = vandq_u32(vcgeq_s32(lane, vdupq_n_s32(lo - base)), vcltq_s32(lane, vdupq_n_s32(hi - base)));
        return vbslq_f32(inside, p, q);
    };
    return {quarter(0, x.a, y.a), quarter(4, x.b, y.b), quarter(8, x.c, y.c), quarter(12, x.d, y.d)};
}
inline V16 load_bf16(const bf16* p) {
    auto quarter = [](uint16x4_t v) { return vreinterpretq_f32_u32(vshll_n_u16(v, 16)); };
    uint16x8_t low = vld1q_u16(p), high = vld1q_u16(p + 8);
    return {quarter(vget_low_u16(low)), quarter(vget_high_u16(low)), quarter(vget_low_u16(high)), quarter(vget_high_u16(high))};
}
inline V16 load_fp16(const fp16* p) {
    auto quarter = [](const fp16* q) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(q))); };
    return {quarter(p), quarter(p + 4), quarter(p + 8), quarter(p + 12)};
}
// A widening shift gives four bfloat16 their order, as cheaply as any other one.
template <class W> V16 load_split(const W* p);
template <> inline V16 load_split<float>(const float* p) { return load(p); }
template <> inline V16 load_split<bf16>(const bf16* p) { return load_bf16(p); }
template <class W> inline V16 join(V16 v) { return v; }
template <class W> inline V16 split(V16 v) { return v; }
inline V16 power_of_two(V16 magic_sum) {
    return quarters([](float32x4_t m) {
        int32x4_t n = vsubq_s32(vreinterpretq_s32_f32(m), vdupq_n_s32(0x4b400000 - 127));
        return vreinterpretq_f32_s32(vshlq_n_s32(n, 23));
    }, magic_sum);
}
inline void fold_to_8(V16 v, float* out) { vst1q_f32(out, vaddq_f32(v.a, v.c)), vst1q_f32(out + 4, vaddq_f32(v.b, v.d)); }
inline float max_lanes(V16 v) { return vmaxvq_f32(vmaxq_f32(vmaxq_f32(v.a, v.b), vmaxq_f32(v.c, v.d))); }

#else

constexpr const char* ISA = "portable";
struct V16 { float v[LANES]; };

template <class F> inline V16 each(F f) {
    V16 out;
    for (int i = 0; i < LANES; ++i) out.v[i] = f(i);
    return out;
}
inline V16 zero() { return each([](int) { return 0.0f; }); }
inline V16 set1(float x) { return each([&](int) { return x; }); }
inline V16 load(const float* p) { return each([&](int i) { return p[i]; }); }
inline void store(float* p, V16 v) { std::memcpy(p, v.v, sizeof v.v); }
inline V16 add(V16 x, V16 y) { return each([&](int i) { return x.v[i] + y.v[i]; }); }
inline V16 sub(V16 x, V16 y) { return each([&](int i) { return x.v[i] - y.v[i]; }); }
inline V16 mul(V16 x, V16 y) { return each([&](int i) { return x.v[i] * y.v[i]; }); }
inline V16 div(V16 x, V16 y) { return each([&](int i) { return x.v[i] / y.v[i]; }); }
inline V16 fma(V16 x, V16 y, V16 z) { return each([&](int i) { return __builtin_fmaf(x.v[i], y.v[i], z.v[i]); }); }
inline V16 max(V16 x, V16 y) { return each([&](int i) { return x.v[i] > y.v[i] ? x.v[i] : y.v[i]; }); }
inline V16 min(V16 x, V16 y) { return each([&](int i) { return x.v[i] < y.v[i] ? x.v[i] : y.v[i]; }); }
inline V16 select(int lo, int hi, V16 x, V16 y) {
    return each([&](int i) { return i >= lo && i < hi ? x.v[i] : y.v[i]; });
}
inline V16 load_bf16(const bf16* p) { return each([&](int i) { return to_float(p[i]); }); }
inline V16 load_fp16(const fp16* p) { return each([&](int i) { return half_to_float(p[i]); }); }
template <class W> inline V16 load_split(const W* p) { return each([&](int i) { return to_float(p[i]); }); }
template <class W> inline V16 join(V16 v) { return v; }
template <class W> inline V16 split(V16 v) { return v; }
inline V16 power_of_two(V16 magic_sum) {
    return each([&](int i) {
        uint32_t bits;
        std::memcpy(&bits, &magic_sum.v[i], 4);
        bits = (bits - (0x4b400000u - 127u)) << 23;
        float out;
        std::memcpy(&out, &bits, 4);
        return out;
    });
}
inline void fold_to_8(V16 v, float* out) {
    for (int i = 0; i < 8; ++i) out[i] = v.v[i] + v.v[i + 8];
}
inline float max_lanes(V16 v) {
    float best = v.v[0];
    for (int i = 1; i < LANES; ++i) best = v.v[i] > best ? v.v[i] : best;
    return best;
}

#endif

// ---- built from the operations above, so the same on every machine ----

template <class W> V16 load_plain(const W* p);
template <> inline V16 load_plain<float>(const float* p) { return load(p); }
template <> inline V16 load_plain<bf16>(const bf16* p) { return load_bf16(p); }

// The first `count` (< 16) elements, zeros after them; memory after them is not read.
template <class W> inline V16 load_first(const W* p, int count) {
    W padded[LANES] = {};
    std::memcpy(padded, p, size_t(count) * sizeof(W));
    return load_plain<W>(padded);
}
template <class W> inline V16 load_split_first(const W* p, int count) {
    W padded[LANES] = {};
    std::memcpy(padded, p, size_t(count) * sizeof(W));
    return load_split<W>(padded);
}
inline void store_first(float* p, V16 v, int count) {
    float whole[LANES];
    store(whole, v);
    std::memcpy(p, whole, size_t(count) * 4);
}

inline float sum_lanes(V16 v) {
    float t[8];
    fold_to_8(v, t);
    return ((t[0] + t[4]) + (t[2] + t[6])) + ((t[1] + t[5]) + (t[3] + t[7]));
}

// e**x, relative error below 3e-7 for x in [-87, 88], clamped outside; a NaN stays NaN.
// Source: Cephes expf (range reduction by ln 2 in two parts, polynomial of degree 5).
inline V16 exp(V16 x) {
    x = min(set1(88.37f), max(set1(-87.33f), x));
    V16 magic = set1(12582912.0f);  // 1.5 * 2**23: adding it rounds to the nearest integer
    V16 shifted = add(mul(x, set1(1.44269504088896341f)), magic);
    V16 n = sub(shifted, magic);
    V16 r = fma(n, set1(-0.693359375f), x);
    r = fma(n, set1(2.12194440e-4f), r);
    V16 p = set1(1.9875691500e-4f);
    p = fma(p, r, set1(1.3981999507e-3f));
    p = fma(p, r, set1(8.3334519073e-3f));
    p = fma(p, r, set1(4.1665795894e-2f));
    p = fma(p, r, set1(1.6666665459e-1f));
    p = fma(p, r, set1(5.0000001201e-1f));
    p = add(fma(p, mul(r, r), r), set1(1.0f));
    return mul(p, power_of_two(shifted));
}

}  // namespace ml
