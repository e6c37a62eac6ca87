"""The sizes at which one route gives way to another; ``python -m benchmarks.thresholds`` measures them."""

from __future__ import annotations

# Matrices of at most this many entries are decomposed by a kernel that takes one in each SIMD lane: alone it takes up
# to twice LAPACK's time, in a batch a third of it.
SMALL_ENTRIES = 64 * 64

# A matrix with a smaller side beyond this is decomposed alone, on BLAS's own threads; up to it, a batch is divided
# among workers with one BLAS thread each, since BLAS gains little from threads on so small a matrix. Up to it, too, the
# lower triangle of a Gram matrix stays in a core's own cache, which the kernel for tridiagonal form reads once a
# column.
LARGE = 512

# From so many rows for each column on, or columns for each row, a QR factorisation first is less work.
TALL = 2

# From so many times the smaller side on, the eigenvectors of a Gram matrix are less work than right singular vectors by
# bidiagonal form.
GRAM_FACTORS = 4

# From this smaller side on the bidiagonal reduction of a matrix in one pass for each column waits for memory, and has
# no work for a second thread: two stages have its speed at 700 on two cores, 1.13 times it at 1,000, and more beyond.
TWO_STAGES_SVD = 768

# From this smaller side on LAPACK's reduction of a Gram matrix in one stage waits for memory, and two stages overtake
# it: they have its speed at 768, 1.15 times it at 1,024, 1.8 times at 1,536, and more beyond.
TWO_STAGES = 1024

# Block Krylov reads the matrix a few dozen times at the speed of a matrix product; below these it does not pay.
KRYLOV_SMALLEST_SIDE = 1024
KRYLOV_LARGEST_FRACTION = 1 / 16

# All singular vectors cost several times as much as all values. From here on factors of float64 matrices take 0.2 to
# 0.9 times as long as LAPACK's SVD, also of noise, and those of float32 0.4 to 0.8 times as long as a Gram matrix where
# values fall, and up to twice as long of noise.
KRYLOV_FACTORS_SMALLEST_SIDE = {"float32": 512, "float64": 640}

# The fraction of the smaller side as basis vectors from which on "auto" takes all factors if the values wanted do not
# stand out yet: 64 of noise of 4,096 × 1,024 in float32 would take 2.7 times as long as a Gram matrix.
KRYLOV_DENSE_FROM = {"float32": 1 / 3, "float64": 1 / 2}

# The fractions of the smaller side as basis vectors, had and expected, beyond which "auto" takes all values instead.
# More vectors are expected than are needed, since each block adds more digits than the one before: clusters and 0.99^i,
# with up to 500 expected, took 192 to 224, in a third of the time of a Gram matrix at 1,024 and a tenth at 2,048. Where
# it gives up in the end, as on Gaussian entries at 1,024, that takes 1.2 to 1.3 times as long as a Gram matrix alone.
KRYLOV_GIVES_UP = {"float32": (1 / 4, 1 / 2), "float64": (1 / 2, 1 / 2)}

# Gram matrices of float32 factors up to this rank are computed by a kernel, in 40 to 75 % of BLAS's time and without a
# float64 copy; beyond it BLAS is faster.
NARROW_FACTOR = 128
