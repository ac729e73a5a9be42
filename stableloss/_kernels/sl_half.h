/* float16 and bfloat16 by integer arithmetic, which vectorises and is the same on every level. */

#ifndef SL_HALF_H
#define SL_HALF_H

#include "sl_platform.h"

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
static inline float sl_from_bfloat(uint16_t h) { return sl_float_from_bits((uint32_t)h << 16); }
static inline uint16_t sl_to_bfloat(float x) {
    uint32_t bits = sl_bits_from_float(x);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return (uint16_t)((bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16) | 0x40u : rounded);
}

#endif
