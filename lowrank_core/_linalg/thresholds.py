"""The sizes at which one route gives way to another; ``python -m benchmarks.thresholds`` measures them."""

from __future__ import annotations

# Matrices of at most this many entries are decomposed eight together by a kernel of our own, which takes a matrix
# through with as many others as there are lanes: alone it costs up to twice LAPACK's time, in a batch a third of it.
SMALL_ENTRIES = 64 * 64

# A matrix with a smaller side beyond this is decomposed alone, on BLAS's own threads; up to it, a batch is cut over
# workers with one BLAS thread each, since BLAS gains little from threads on so small a matrix. Up to it, too, the lower
# triangle of a Gram matrix stays in a core's own cache, which the kernel for tridiagonal form reads once a column.
LARGE = 512

# From this smaller side on LAPACK's reduction of a Gram matrix in one stage waits for memory, and two stages overtake
# it: they have its speed at 768, 1.15 times it at 1,024, 1.8 times at 1,536, and more beyond.
TWO_STAGES = 1024

# Block Krylov reads the matrix a few dozen times at the speed of a matrix product; below these it does not pay.
KRYLOV_SMALLEST_SIDE = 1024
KRYLOV_LARGEST_FRACTION = 1 / 16

# The share of the smaller side as basis vectors at which "auto" goes to the Gram route instead.
KRYLOV_GIVES_UP = 1 / 4

# A product with σ₁ under this share of ‖B‖₂‖A‖₂ has cancelled. The Gram route errs by 1.5e-8·‖B‖₂‖A‖₂ where a singular
# value is zero, so that from 0.125 on it stays within eps32·σ₁; independent factors lie near ½.
CANCELLED = 0.125

# Gram matrices of float32 factors up to this rank are formed by a kernel of our own, in 40 to 75 % of BLAS's time and
# without a float64 copy; beyond it BLAS holds its ground.
NARROW_FACTOR = 128

# Entries converted to float64 at a time: 8 MiB, which stays in the outer cache beside the Gram matrix.
BLOCK_ENTRIES = 2**20

# The same where one pass makes nothing large of them: 1 MiB, which stays in a core's own cache.
CACHED_ENTRIES = 2**17

# Matrices that the kernels take together, one a lane.
LANES = 8

# Multiplications below which starting threads costs more than they save (about a millisecond's worth).
THREAD_WORTHY = 2**22
