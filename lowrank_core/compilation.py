"""Every kernel compiled before it is needed, for images and clusters."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

import numpy as np

from lowrank_core._linalg import code_folder, kernels_in_use, residual_energy
from lowrank_core.comparison import compare
from lowrank_core.learning import learning_sweep
from lowrank_core.spectra import spectrum
from lowrank_core.sweeps import error_sweep, reconstruction_error
from lowrank_core.truncation import truncate
from lowrank_core.updates import LowRankUpdate

__all__ = ["Compilation", "compile_kernels"]

# From this side on a Gram matrix is reduced in two stages, which have kernels of their own.
LARGE_SIDE = 1024


@dataclass(frozen=True)
class Compilation:
    """What was compiled, or was on disk already.

    Attributes
    ----------
    folder : str
        Where the machine code is.
    kernels : tuple of str
        The names of all kernels.
    seconds : float
        How long it took.
    """

    folder: str
    kernels: tuple[str, ...]
    seconds: float


def compile_kernels() -> Compilation:
    """Compile every kernel that is not on disk yet, by small problems of every kind.

    A process that comes later, by the same user or from the same image, on the same kind of processor, compiles none.

    Returns
    -------
    Compilation

    Raises
    ------
    OSError
        If no folder can be written where later processes would look.

    See Also
    --------
    lowrank_core.spectrum : Uses most of the kernels.

    Examples
    --------
    >>> from lowrank_core.compilation import compile_kernels
    >>> "small.small_values" in compile_kernels().kernels
    True
    """
    start = perf_counter()
    folder = code_folder()
    if folder is None:
        raise OSError(
            "compiled code cannot be kept: neither the folder of the package nor the user's cache can be written. Set "
            "NUMBA_CACHE_DIR to a folder that can be, now and wherever lowrank_core runs."
        )
    draw = np.random.default_rng(0).standard_normal
    small = spectrum(draw((8, 8)))
    error_sweep(small, [1, 2])
    reconstruction_error(small, 1)
    learning_sweep(small, [1], steps=2)
    single = draw((LARGE_SIDE, LARGE_SIDE)).astype(np.float32)
    factor = single[:, :8]
    product = LowRankUpdate(factor, factor.T)
    spectrum(product)
    compare(product, product)
    spectrum(single[:100, :100])
    spectrum(single)
    double = single.astype(np.float64)
    for of_every_route in (double[:, :16], double[:100, :100], double):
        spectrum(of_every_route)
    truncate(double[:8, :8], 1)
    for matrix in (single, double):
        spectrum(matrix, rank=4, method="krylov")
    residual_energy(single, factor.astype(np.float64), factor.T.astype(np.float64), 1)
    return Compilation(folder, kernels_in_use(), perf_counter() - start)
