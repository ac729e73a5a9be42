/* How much is taken at once, from large to small; what fits into what is asserted below. */

#ifndef SL_SIZES_H
#define SL_SIZES_H

#include "sl_platform.h"

/* Rows of a softmax loss that are taken together; columns of a tile, and lanes of a sum. Fixed, so that every
   level adds in the same order: four vectors of float32 with AVX2, eight of float64 with AVX-512. */
#define SL_GROUP 32
/* Classes up to which rows are the columns of a tile; a wider row is taken by itself. */
#define SL_NARROW 128
/* The same for rows of class indices and of activations, which need no more than their exponentials: 32 rows
   of 192 classes take as long as each by itself for float32, and of 160 already longer for float64. */
#define SL_FEW_F32 176
#define SL_FEW_F64 SL_NARROW
/* Logits of a wide row that are taken at once: they stay in the L1 cache, and leave room in it. */
#define SL_PIECE 2048
/* Entries of a tile at most, of which scratch holds so many. */
#define SL_TILE (SL_NARROW * SL_GROUP)
#define SL_PLACES 8
/* Elements of a sigmoid loss that are taken at once, of which scratch holds so many. */
#define SL_CHUNK 512
#define SL_CHUNK_PLACES 14

/* Bytes of scratch memory that a kernel may use. */
#define SL_SCRATCH 262144

#define SL_STATIC_ASSERT(condition, message) _Static_assert(condition, message)

SL_STATIC_ASSERT(SL_PLACES * SL_TILE * sizeof(double) <= SL_SCRATCH, "a place lies outside of scratch");
SL_STATIC_ASSERT(SL_CHUNK_PLACES * SL_CHUNK * sizeof(double) <= SL_SCRATCH, "a place lies outside of scratch");
/* class indices take one line more than there are classes, and reach into the place after their own */
SL_STATIC_ASSERT((SL_FEW_F32 + 1) * SL_GROUP <= 2 * SL_TILE, "the columns of class indices lie in a third place");
SL_STATIC_ASSERT(SL_PIECE <= SL_TILE && SL_PIECE % SL_GROUP == 0, "a piece is no tile");
/* lines of a tile are counted in float32 */
SL_STATIC_ASSERT(SL_TILE / SL_GROUP < 1 << 24, "the lines of a tile can not be told apart");

#endif
