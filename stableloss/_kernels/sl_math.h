/* exp and log1p as plain arithmetic that the compiler turns into SIMD, for float32 and float64: constants,
   and what is easier said in C. The functions of both types are in _math.pxi.

   The same source gives the same bits on every level with fused multiply-add: each fma is written out
   and the build passes -ffp-contract=off. The base level of x86-64 has no such instruction; there fma
   is a product and a sum, and results may differ in the last bits.

   Polynomial coefficients are minimax fits (Remez, 60 digits) rounded to the type; the fitted error
   stands with each set. */

#ifndef SL_MATH_H
#define SL_MATH_H

#include "sl_platform.h"

#if defined(__FMA__) || defined(__aarch64__)
#define SL_FMAF(a, b, c) __builtin_fmaf(a, b, c)
#define SL_FMA(a, b, c) __builtin_fma(a, b, c)
#define SL_PRODUCT_ERRORF(a, b, product) __builtin_fmaf(a, b, -(product))
#define SL_PRODUCT_ERROR(a, b, product) __builtin_fma(a, b, -(product))
#else
#define SL_FMAF(a, b, c) ((a) * (b) + (c))
#define SL_FMA(a, b, c) ((a) * (b) + (c))
#define SL_PRODUCT_ERRORF(a, b, product) ((float)((double)(a) * (b) - (product)))
/* Dekker's splitting; it overflows, and then no correction is made, from 2**996 */
static inline double SL_PRODUCT_ERROR(double a, double b, double product) {
    double t = a * 134217729.0, a_hi = t - (t - a), a_lo = a - a_hi;    /* 2**27 + 1 */
    double u = b * 134217729.0, b_hi = u - (u - b), b_lo = b - b_hi;
    double error = ((a_hi * b_hi - product) + a_hi * b_lo + a_lo * b_hi) + a_lo * b_lo;
    return error - error == 0 ? error : 0;
}
#endif

/* 1.5 * 2**(mantissa bits) rounds an added number to an integer n; the exponent bias on top
   leaves n + bias in the low bits, ready to be shifted into the exponent field. */
#define SL_MAGIC_F32 0x1.8000fep+23f                /* 12583039 */
#define SL_MAGIC_F64 0x1.80000000003ffp+52          /* 6755399441056767 */

/* The exponentials of rows come times UNIT (see sl_columns.h): a sum over 10**9 classes, each far below the
   smallest normal number, may itself lie above it. */
#define SL_UNIT_F32 0x1p32f
#define SL_UNIT_F64 0x1p64
#define SL_UNIT_MAGIC_F32 0x1.80013ep+23f           /* 12583071 */
#define SL_UNIT_MAGIC_F64 0x1.800000000043fp+52     /* 6755399441056831 */

static inline float sl_pow2_f32(float shifted) {
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits <<= 23;
    memcpy(&shifted, &bits, sizeof bits);
    return shifted;
}
static inline double sl_pow2_f64(double shifted) {
    uint64_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits <<= 52;
    memcpy(&shifted, &bits, sizeof bits);
    return shifted;
}
#define SL_LOG2E_F32 0x1.715476p+0f                 /* 1.44269502 */
#define SL_LOG2E_F64 0x1.71547652b82fep+0           /* 1.4426950408889634 */
/* ln 2 in two parts. The first is a multiple of 2**-15 (2**-41), so that n * LN2_HI and the sums
   with numbers on that grid are exact. */
#define SL_LN2_HI_F32 0x1.62e4p-1f                  /* 0.693145752 */
#define SL_LN2_LO_F32 0x1.7f7d1cp-20f               /* 1.42860677e-06 */
#define SL_LN2_HI_F64 0x1.62e42fefa4p-1             /* 0.69314718056011770 */
#define SL_LN2_LO_F64 -0x1.8432a1b0e2634p-43        /* -1.7239444525614835e-13 */
/* the smallest normal number is e**EXP_MIN, rounded towards 0: results below it are 0 */
#define SL_EXP_MIN_F32 -0x1.5d589ep+6f              /* -87.3365402 */
#define SL_EXP_MIN_F64 -0x1.6232bdd7abcd2p+9        /* -708.3964185322641 */

/* e**r = 1 + r + r**2 q(r), |r| <= ln(2)/2: relative error 2**-28.3 and 2**-57.9 */
#define SL_EXP0_F32 0x1.fffffcp-2f                  /* 0.49999994 */
#define SL_EXP1_F32 0x1.555492p-3f                  /* 0.166665211 */
#define SL_EXP2_F32 0x1.5558f2p-5f                  /* 0.0416683890 */
#define SL_EXP3_F32 0x1.1239e2p-7f                  /* 0.00836871658 */
#define SL_EXP4_F32 0x1.6a247ap-10f                 /* 0.00138146395 */
#define SL_EXP0_F64 0x1.000000000000ap-1            /* 0.50000000000000111 */
#define SL_EXP1_F64 0x1.55555555554fap-3            /* 0.16666666666666413 */
#define SL_EXP2_F64 0x1.555555555087cp-5            /* 0.041666666666530155 */
#define SL_EXP3_F64 0x1.1111111127beap-7            /* 0.0083333333334944699 */
#define SL_EXP4_F64 0x1.6c16c1842a18fp-10           /* 0.0013888888943630361 */
#define SL_EXP5_F64 0x1.a01a012a559b1p-13           /* 0.00019841269506555356 */
#define SL_EXP6_F64 0x1.a0199a0c5affdp-16           /* 2.4801493098733352e-05 */
#define SL_EXP7_F64 0x1.71df255761396p-19           /* 2.7557586396741581e-06 */
#define SL_EXP8_F64 0x1.28ad72d3fa16fp-22           /* 2.7630248422432849e-07 */
#define SL_EXP9_F64 0x1.ad7f6655530e7p-26           /* 2.5000053878886233e-08 */

/* the same for float32 that is computed in float64: relative error 2**-34.2 */
#define SL_BRIEF0_F64 0x1.0000003a23d72p-1          /* 0.50000000676838696 */
#define SL_BRIEF1_F64 0x1.5555544338cfcp-3          /* 0.16666665868897457 */
#define SL_BRIEF2_F64 0x1.55548dc40b3ccp-5          /* 0.04166629494316218 */
#define SL_BRIEF3_F64 0x1.111270b7bb6e1p-7          /* 0.0083334970836079231 */
#define SL_BRIEF4_F64 0x1.6d8d073ae424ep-10         /* 0.0013944659865253897 */
#define SL_BRIEF5_F64 0x1.9f089017d26c1p-13         /* 0.00019790337023044803 */
#define SL_LN2_F64 0x1.62e42fefa39efp-1             /* 0.69314718055994531 */
/* 1 / (1 + e) = 1 + e q(e), 0 <= e <= 1/e**2, for that: relative error 2**-33.7 */
#define SL_SHARE0_F64 -0x1.fffffee7cfeacp-1         /* -0.99999996738184427 */
#define SL_SHARE1_F64 0x1.ffff61ae36dfep-1          /* 0.99999528171196039 */
#define SL_SHARE2_F64 -0x1.ffe201c61f8b2p-1         /* -0.99977117103096291 */
#define SL_SHARE3_F64 0x1.fd5c185de53fp-1           /* 0.99484325548348629 */
#define SL_SHARE4_F64 -0x1.e14fbc3a1e578p-1         /* -0.94006145677046415 */
#define SL_SHARE5_F64 0x1.47ef385652279p-1          /* 0.6404969792720997 */
/* tanh(t) = t + t**3 q(t**2), |t| <= 1, for that: relative error 2**-34.8 */
#define SL_BRIEFTANH0_F64 -0x1.5555550d71e81p-2     /* -0.33333332914887853 */
#define SL_BRIEFTANH1_F64 0x1.1110fa308316cp-3      /* 0.13333316288516117 */
#define SL_BRIEFTANH2_F64 -0x1.ba1693a8fc547p-5     /* -0.05396584358084993 */
#define SL_BRIEFTANH3_F64 0x1.66087057fca68p-6      /* 0.021852597914355704 */
#define SL_BRIEFTANH4_F64 -0x1.2033d3d827f79p-7     /* -0.0087952408214844058 */
#define SL_BRIEFTANH5_F64 0x1.c0a0049dcd52ep-9      /* 0.0034227376590033809 */
#define SL_BRIEFTANH6_F64 -0x1.368a55dd16f1fp-10    /* -0.0011846175105096402 */
#define SL_BRIEFTANH7_F64 0x1.40b932d407f17p-12     /* 0.0003058656996035454 */
#define SL_BRIEFTANH8_F64 -0x1.596b4a2805c9p-15     /* -4.1177165542354986e-05 */
/* and with all digits, |t| <= 1/2: relative error 2**-58.3 */
#define SL_TANH0_F64 -0x1.5555555555537p-2          /* -0.33333333333333165 */
#define SL_TANH1_F64 0x1.111111110e27ap-3           /* 0.13333333333300229 */
#define SL_TANH2_F64 -0x1.ba1ba1b707ab3p-5          /* -0.053968253945858712 */
#define SL_TANH3_F64 0x1.664f47b42863fp-6           /* 0.021869487784561988 */
#define SL_TANH4_F64 -0x1.226e162a1bcfcp-7          /* -0.0088632209992440744 */
#define SL_TANH5_F64 0x1.d6cdf6a4f262bp-9           /* 0.0035919536189552756 */
#define SL_TANH6_F64 -0x1.7d4906888ec95p-10         /* -0.001454487823265881 */
#define SL_TANH7_F64 0x1.31d0b84848fbfp-11          /* 0.00058329641709464048 */
#define SL_TANH8_F64 -0x1.c8ce86f61c16p-13          /* -0.00021782243101454556 */
#define SL_TANH9_F64 0x1.dc6a53a531c4p-15           /* 5.6793134072523777e-05 */

/* log1p(t) = t + t**2 q(t), 0 <= t <= 1: relative error 2**-30.2 */
#define SL_LOG0_F32 -0x1.fffff8p-2f                 /* -0.499999881 */
#define SL_LOG1_F32 0x1.5553a6p-2f                  /* 0.333326906 */
#define SL_LOG2_F32 -0x1.ffc42p-3f                  /* -0.249885798 */
#define SL_LOG3_F32 0x1.97827ap-3f                  /* 0.198979333 */
#define SL_LOG4_F32 -0x1.4a542ep-3f                 /* -0.161293373 */
#define SL_LOG5_F32 0x1.fea74cp-4f                  /* 0.124671265 */
#define SL_LOG6_F32 -0x1.544588p-4f                 /* -0.0830741227 */
#define SL_LOG7_F32 0x1.57e962p-5f                  /* 0.0419814028 */
#define SL_LOG8_F32 -0x1.bead4ep-7f                 /* -0.0136314994 */
#define SL_LOG9_F32 0x1.0fb4b4p-9f                  /* 0.00207295129 */
/* the same for float32 that is computed in float64: relative error 2**-35.5 */
#define SL_BRIEFLOG0_F64 -0x1.ffffffb3dbefep-2      /* -0.499999995568018 */
#define SL_BRIEFLOG1_F64 0x1.55554064c77e8p-2       /* 0.33333302130802034 */
#define SL_BRIEFLOG2_F64 -0x1.fffbf32df0419p-3      /* -0.24999227508490732 */
#define SL_BRIEFLOG3_F64 0x1.9966c313afbd1p-3       /* 0.19990303424671521 */
#define SL_BRIEFLOG4_F64 -0x1.53d9be7619c7cp-3      /* -0.1659426574508166 */
#define SL_BRIEFLOG5_F64 0x1.1d5efae34c9adp-3       /* 0.13934131628191207 */
#define SL_BRIEFLOG6_F64 -0x1.cfde281ead0a1p-4      /* -0.11324897453124773 */
#define SL_BRIEFLOG7_F64 0x1.53ce2d4ab0dcp-4        /* 0.082960297509138137 */
#define SL_BRIEFLOG8_F64 -0x1.9922062d374fap-5      /* -0.049942981780739928 */
#define SL_BRIEFLOG9_F64 0x1.6b2287c8903d2p-6       /* 0.022163994408632544 */
#define SL_BRIEFLOG10_F64 -0x1.99f3c0fcfeb49p-8     /* -0.0062553735888240614 */
#define SL_BRIEFLOG11_F64 0x1.b1fe0e61690c1p-11     /* 0.0008277748240073311 */
/* atanh(s) = s + s**3 p(s**2) / 2, |s| <= 1/5: error of the logarithm 2**-62.7 */
#define SL_LOG0_F64 0x1.555555555554fp-1            /* 0.66666666666666596 */
#define SL_LOG1_F64 0x1.999999999c1adp-2            /* 0.40000000000056951 */
#define SL_LOG2_F64 0x1.24924921e1858p-2            /* 0.28571428555767886 */
#define SL_LOG3_F64 0x1.c71c7492029cdp-3            /* 0.22222224302852425 */
#define SL_LOG4_F64 0x1.745c4a5ce8126p-3            /* 0.18181665512111883 */
#define SL_LOG5_F64 0x1.3b35d01b14e25p-3            /* 0.15391123373648088 */
#define SL_LOG6_F64 0x1.0dca9f78bef3ap-3            /* 0.13173412883031138 */
#define SL_LOG7_F64 0x1.1b87db074a261p-3            /* 0.13844271770473696 */

/* log(2**n (1 + f)) for f in [-1/4, 1/2], as in fdlibm through s = f / (2 + f). */
static SL_ALWAYS_INLINE double sl_log_reduced(double n, double f) {
    double s = f / (2 + f), z = s * s, half_square = 0.5 * f * f;
    double p = SL_FMA(SL_LOG7_F64, z, SL_LOG6_F64);
    p = SL_FMA(p, z, SL_LOG5_F64);
    p = SL_FMA(p, z, SL_LOG4_F64);
    p = SL_FMA(p, z, SL_LOG3_F64);
    p = SL_FMA(p, z, SL_LOG2_F64);
    p = SL_FMA(p, z, SL_LOG1_F64);
    p = SL_FMA(p, z, SL_LOG0_F64);
    return n * SL_LN2_HI_F64
         + (f - (half_square - SL_FMA(s, SL_FMA(p, z, half_square), n * SL_LN2_LO_F64)));
}

/* log(1 + t) for finite t >= 0; NaN for NaN. Largest error found of 6 * 10**7 arguments: 0.845 ulp, at
   0x1.fb94395a313d8p-2.

   1 + t = 2**n (1 + f) with f in [-1/4, 1/2]; below 1/2, f is t itself, so that no digit of a
   small t is lost, and above, f takes up the rounding error of 1 + t.
 */
static SL_ALWAYS_INLINE double log1p_positive(double t) {
    double u = 1 + t, error = t - (u - 1);
    uint64_t bits = sl_bits_f64(u);
    uint64_t n = (bits - 0x3fe8000000000000u) >> 52;                    /* 0.75 */
    double nn = sl_from_bits_f64(n | 0x4330000000000000u) - 0x1p52;
    double unit = sl_from_bits_f64((1023 - n) << 52);
    double f = (sl_from_bits_f64(bits - (n << 52)) - 1) + error * unit;
    return sl_log_reduced(t < 0.5 ? 0 : nn, t < 0.5 ? t : f);
}

/* log(r) for normal r <= 1 as part of a difference: near 1 with an error of an ulp of log(2). NaN for NaN. */
static SL_ALWAYS_INLINE double sl_log_of_ratio(double r) {
    uint64_t bits = sl_bits_f64(r);
    uint64_t n = (bits + 0x0008000000000000u) >> 52;                    /* 1 - 0.75: 1023 for r = 1 */
    double nn = sl_from_bits_f64(n | 0x4330000000000000u) - (0x1p52 + 1023);
    double f = sl_from_bits_f64(bits + ((1023 - n) << 52)) - 1;
    return r != r ? r : sl_log_reduced(nn, f);
}

#endif
