/* Sums over the columns of tiles (see sl_columns.h) that targets other than class indices need, for both
   types. Accumulators stay in registers, which GCC does not see to by itself. */

#ifndef SL_TARGETS_H
#define SL_TARGETS_H

#include "sl_math.h"
#include "sl_sizes.h"
#include "sl_vector.h"

#define SL_LANES (SL_VECTOR_BYTES / 8)
/* columns that go together, few enough for what belongs to them to find room in registers */
#define SL_COLUMN_VECTORS (SL_VECTOR_BYTES == 64 ? 4 : 2)

static SL_ALWAYS_INLINE sl_vector_f64 sl_where_f64(sl_bits_vector_f64 which, sl_vector_f64 v) {
    return (sl_vector_f64)(which & (sl_bits_vector_f64)v);
}

#define SL_OF(name) name##_f32
#define SL_REAL float
#define SL_READ_AS_F64(from) sl_read_as_f64(from)
#define SL_CARRIES 0
#define SL_SCALAR_FMA SL_FMAF
#include "sl_targets_of.h"

#define SL_OF(name) name##_f64
#define SL_REAL double
#define SL_READ_AS_F64(from) SL_READ(sl_vector_f64, from)
#define SL_CARRIES 1
#define SL_SCALAR_FMA SL_FMA
#include "sl_targets_of.h"

#endif
