"""Which CPU levels this machine can run; built for the baseline.

A level's flags let the compiler use every instruction set of that psABI level, so every one of them
is asked for, and through XGETBV whether the operating system saves the wider registers.
"""

cdef extern from *:
    """
    #if defined(__x86_64__)
    #include <cpuid.h>

    static int sl_x86_level(void) {
        /* SSE3 SSSE3 FMA CX16 SSE4.1 SSE4.2 MOVBE POPCNT OSXSAVE AVX F16C */
        const unsigned leaf1_c = 1u << 0 | 1u << 9 | 1u << 12 | 1u << 13 | 1u << 19 | 1u << 20
                               | 1u << 22 | 1u << 23 | 1u << 27 | 1u << 28 | 1u << 29;
        const unsigned leaf7_b_v3 = 1u << 3 | 1u << 5 | 1u << 8;        /* BMI1 AVX2 BMI2 */
        const unsigned leaf7_b_v4 = 1u << 16 | 1u << 17 | 1u << 28 | 1u << 30 | 1u << 31;
                                                                        /* AVX512 F DQ CD BW VL */
        const unsigned extended_c = 1u << 0 | 1u << 5;                  /* LAHF LZCNT */
        unsigned a, b, c, d, xcr0, xcr0_high;
        if (!__get_cpuid(1, &a, &b, &c, &d) || (c & leaf1_c) != leaf1_c) return 1;
        __asm__("xgetbv" : "=a"(xcr0), "=d"(xcr0_high) : "c"(0));
        if ((xcr0 & 0x6) != 0x6) return 1;                              /* XMM YMM */
        if (!__get_cpuid(0x80000001, &a, &b, &c, &d) || (c & extended_c) != extended_c) return 1;
        if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (b & leaf7_b_v3) != leaf7_b_v3) return 1;
        if ((b & leaf7_b_v4) != leaf7_b_v4 || (xcr0 & 0xe6) != 0xe6) return 3;  /* opmask ZMM */
        return 4;
    }
    #else
    static int sl_x86_level(void) { return 1; }
    #endif
    """
    int sl_x86_level()


def supported():
    """The levels that CPU and operating system support, slowest first."""
    cdef int level = sl_x86_level()
    if level >= 4:
        return ("base", "v3", "v4")
    if level >= 3:
        return ("base", "v3")
    return ("base",)
