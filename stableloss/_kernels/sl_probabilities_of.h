/* What sl_probabilities.h includes once for each type, with these defined: SL_OF and what follows it there. */

#define V SL_OF(sl_vector)
#define WIDTH ((int)(SL_VECTOR_BYTES / sizeof(SL_REAL)))

static SL_ALWAYS_INLINE V SL_OF(sl_raised)(V p, V tiny, SL_REAL up) { return SL_OF(sl_max)(tiny, p) * up; }

static SL_ALWAYS_INLINE const SL_REAL *SL_OF(sl_either)(int which, const SL_REAL *a, const SL_REAL *b) {
    return (const SL_REAL *)((uintptr_t)b + (-(uintptr_t)which & ((uintptr_t)a - (uintptr_t)b)));
}

/* max(tiny, p) of the first n numbers of a line but number y, and 0 in place of all others. */
static SL_ALWAYS_INLINE void SL_OF(sl_raise_line)(
        const SL_REAL *p, Py_ssize_t n, Py_ssize_t y, SL_REAL tiny, SL_REAL *to) {
    SL_OF(sl_bits_vector) place;
    Py_ssize_t i, left;
    V v;
#pragma GCC unroll 16
    for (i = 0; i < SL_LINE; i += WIDTH) {
        place = SL_LANES + (SL_BITS)i;
        left = n - i;
        v = left >= WIDTH ? SL_READ(V, p + i) : left <= 0 ? (V){0} : SL_OF(sl_read_first)(p + i, left, (V){0});
        v = SL_OF(sl_max)(SL_OF(sl_all)(tiny), v);
        SL_WRITE(V, to + i, (V)((SL_OF(sl_bits_vector))v & (SL_OF(sl_bits_vector))(place < (SL_BITS)n)
                                & (SL_OF(sl_bits_vector))(place != (SL_BITS)y)));
    }
}

/* up * max(tiny, p) in place, of n numbers, n a multiple of SL_GROUP. NaN stays NaN. */
static void SL_OF(sl_raise)(SL_REAL *p, Py_ssize_t n, SL_REAL tiny, SL_REAL up, const sl_ahead *ahead) {
    V least = SL_OF(sl_all)(tiny), upper, lower;
    sl_ahead next;
    Py_ssize_t i;
    if (ahead != NULL) next = *ahead;
    for (i = 0; i < n; i += 2 * WIDTH) {
        upper = SL_READ(V, p + i);
        lower = SL_READ(V, p + i + WIDTH);
        if (ahead != NULL) sl_fetch(&next, 2 * sizeof(V));
        SL_WRITE(V, p + i, SL_OF(sl_raised)(upper, least, up));
        SL_WRITE(V, p + i + WIDTH, SL_OF(sl_raised)(lower, least, up));
    }
}

/* to = up * max(tiny, p) * factor, in place or not. */
static void SL_OF(sl_raise_and_scale)(
        const SL_REAL *p, Py_ssize_t n, SL_REAL tiny, SL_REAL up, SL_REAL factor, SL_REAL *to,
        const sl_ahead *ahead) {
    /* beside the last ones 1: of a 0 the product would be subnormal, which takes as long as a row */
    V least = SL_OF(sl_all)(tiny), one = SL_OF(sl_all)(1), upper, lower;
    Py_ssize_t i = 0;
    sl_ahead next;
    if (ahead != NULL) next = *ahead;
    for (; i + 2 * WIDTH <= n; i += 2 * WIDTH) {
        upper = SL_READ(V, p + i);
        lower = SL_READ(V, p + i + WIDTH);
        if (ahead != NULL) sl_fetch(&next, 2 * sizeof(V));
        SL_WRITE(V, to + i, SL_OF(sl_raised)(upper, least, up) * factor);
        SL_WRITE(V, to + i + WIDTH, SL_OF(sl_raised)(lower, least, up) * factor);
    }
    for (; i + WIDTH <= n; i += WIDTH)
        SL_WRITE(V, to + i, SL_OF(sl_raised)(SL_READ(V, p + i), least, up) * factor);
    if (i < n)
        SL_OF(sl_write_first)(
            to + i, n - i, SL_OF(sl_raised)(SL_OF(sl_read_first)(p + i, n - i, one), least, up) * factor);
}

#undef V
#undef WIDTH
#undef SL_OF
#undef SL_REAL
#undef SL_BITS
#undef SL_LANES
#undef SL_LINE
