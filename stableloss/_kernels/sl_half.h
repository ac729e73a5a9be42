/* float16 and bfloat16: by the conversions of level v3, which every CPU of it has, else by integer arithmetic,
   which vectorises. Results are the same bits. */

#ifndef SL_HALF_H
#define SL_HALF_H

#include "sl_vector.h"

#if defined(__F16C__)
static inline float sl_from_half(uint16_t h) { return _cvtsh_ss(h); }
/* Of a NaN only the sign stays, as below. */
static inline uint16_t sl_to_half(float x) {
    uint16_t half = _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT);
    return (half & 0x7fffu) > 0x7c00u ? (half & 0x8000u) | 0x7e00u : half;
}
#else
static inline float sl_from_half(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, magnitude = h & 0x7fffu;
    uint32_t normal = (magnitude << 13) + (112u << 23);         /* exponent bias 127 for 15 */
    uint32_t special = (magnitude << 13) | 0x7f800000u;
    uint32_t subnormal = sl_bits_from_float((float)(int32_t)magnitude * 0x1p-24f);
    uint32_t bits = magnitude >= 0x7c00u ? special : magnitude < 0x0400u ? subnormal : normal;
    return sl_float_from_bits(bits | sign);
}
static inline uint16_t sl_to_half(float x) {
    uint32_t bits = sl_bits_from_float(x), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
    /* half an ulp, less where the last bit kept is even: ties go to even */
    uint32_t normal = ((magnitude + 0xfffu + ((magnitude >> 13) & 1u)) >> 13) - (112u << 10);
    /* the ulp of numbers just above 1/2 is the smallest half: this addition rounds to it */
    uint32_t subnormal = sl_bits_from_float(sl_float_from_bits(magnitude) + 0.5f) - 0x3f000000u;
    uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
    half = magnitude >= 0x477ff000u ? 0x7c00u : half;           /* 65520 and more */
    half = magnitude > 0x7f800000u ? 0x7e00u : half;
    return (uint16_t)(half | sign);
}
#endif
static inline float sl_from_bfloat(uint16_t h) { return sl_float_from_bits((uint32_t)h << 16); }
static inline uint16_t sl_to_bfloat(float x) {
    uint32_t bits = sl_bits_from_float(x);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return (uint16_t)((bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16) | 0x40u : rounded);
}

/* n in a row. */
static void sl_from_halves_f32(const uint16_t *h, Py_ssize_t n, float *to) {
    Py_ssize_t i = 0;
#if defined(__AVX512F__)
    for (; i + 16 <= n; i += 16)
        _mm512_storeu_ps(to + i, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(h + i))));
#endif
#if defined(__F16C__)
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(h + i))));
#endif
    for (; i < n; i++) to[i] = sl_from_half(h[i]);
}
static void sl_to_halves_f32(const float *from, Py_ssize_t n, uint16_t *to) {
    Py_ssize_t i = 0;
#if defined(__F16C__)
    __m128i half, sign = _mm_set1_epi16((short)0x8000), infinity = _mm_set1_epi16(0x7c00), nan;
    for (; i + 8 <= n; i += 8) {
        half = _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
        nan = _mm_cmpgt_epi16(_mm_andnot_si128(sign, half), infinity);
        half = _mm_blendv_epi8(half, _mm_or_si128(_mm_and_si128(sign, half), _mm_set1_epi16(0x7e00)), nan);
        _mm_storeu_si128((__m128i *)(to + i), half);
    }
#endif
    for (; i < n; i++) to[i] = sl_to_half(from[i]);
}

#endif
