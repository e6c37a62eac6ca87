"""What comes in at the door: updates, ranks, alphas and fractions, checked once and explained when wrong."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "all_finite",
    "as_alpha",
    "as_factor",
    "as_fraction",
    "as_matrices",
    "as_ranks",
    "as_stack",
    "as_whole_numbers",
    "check_finite",
    "coarsest_dtype",
]

STORED_DTYPES = ("float64", "float32", "float16", "bfloat16")


def as_matrices(update: Any, name: str = "update") -> tuple[NDArray[Any], str]:
    """View an update as a NumPy array of shape (..., m, n) in a real dtype, without copying where NumPy can.

    Parameters
    ----------
    update : array_like or torch.Tensor
        Real, integer or boolean, at least two-dimensional, no empty matrices. A tensor is recognised by its methods.
    name : str
        What the messages call it.

    Returns
    -------
    matrices : ndarray
        The same numbers; a bfloat16 tensor comes back as float32, which holds each of its values exactly.
    dtype : str
        The name of the dtype that the update was stored in; integers and booleans are taken as ``"float64"``.

    Raises
    ------
    ValueError
        If the dtype is not one of those accepted, there are fewer than two dimensions, or a matrix is empty.
    """
    matrices, dtype = _as_array(update, name)
    if matrices.dtype.kind in "iub":
        matrices, dtype = matrices.astype(np.float64), "float64"
    if dtype not in STORED_DTYPES:
        raise ValueError(
            f"{name} has dtype {dtype}; accepted are {', '.join(STORED_DTYPES)}, integers and booleans. "
            "Convert it first, for example with .astype('float64')."
        )
    if matrices.ndim < 2:
        raise ValueError(
            f"{name} has shape {matrices.shape}; a matrix (m, n) or a stack (..., m, n) is needed. "
            "Reshape a vector to one row or one column."
        )
    if 0 in matrices.shape[-2:]:
        raise ValueError(f"{name} has shape {matrices.shape}: its matrices are empty; m and n must be at least 1.")
    return matrices, dtype


def _as_array(update: Any, name: str) -> tuple[NDArray[Any], str]:
    if not (hasattr(update, "detach") and hasattr(update, "device")):
        array = np.asarray(update)
        return array, array.dtype.name
    tensor = update.detach()
    if tensor.device.type != "cpu":
        raise ValueError(f"{name} is a tensor on {tensor.device}; only CPU tensors are accepted. Pass {name}.cpu().")
    if str(tensor.dtype) == "torch.bfloat16":
        return tensor.float().numpy(), "bfloat16"
    try:
        array = tensor.numpy()
    except TypeError as error:
        raise ValueError(
            f"{name} is a tensor of dtype {tensor.dtype} and layout {tensor.layout}, which NumPy cannot read "
            f"({error}); accepted are {', '.join(STORED_DTYPES)}, integers and booleans, dense. "
            f"Pass {name}.to_dense() or {name}.float()."
        ) from None
    return array, array.dtype.name


def _first_bad_index(finite: NDArray[np.bool_]) -> str:
    """Words for the first batch item whose flag is False: `` at batch index (0, 3)``, or nothing for a lone matrix."""
    if finite.ndim == 0:
        return ""
    position = np.unravel_index(int(np.argmin(finite)), finite.shape)
    return f" at batch index {tuple(int(i) for i in position)}"


def as_whole_numbers(numbers: ArrayLike, name: str) -> NDArray[np.int64]:
    """Take non-negative whole numbers (of any numeric dtype but bool) as int64; anything else is a ValueError."""
    given = np.asarray(numbers)
    if given.size == 0 and given.ndim > 0:
        return np.zeros(given.shape, dtype=np.int64)
    if given.dtype.kind not in "iuf":
        raise ValueError(f"{name} must be a whole number or an array of them; got {numbers!r}.")
    whole = (given >= 0) & (given < 2.0**62)
    if given.dtype.kind == "f":
        whole &= given == np.floor(given)
    if not whole.all():
        bad = given[~whole].flat[0]
        raise ValueError(f"{name} must be a whole number of at least 0; got {bad}.")
    return given.astype(np.int64)


def as_ranks(ranks: ArrayLike, largest: int | None = None) -> NDArray[np.int64]:
    """Take ranks as int64, each within 0 … `largest` (that is min(m, n)); anything else is a ValueError."""
    whole = as_whole_numbers(ranks, "rank")
    if largest is not None and whole.size and whole.max() > largest:
        raise ValueError(
            f"rank {whole.max()} is beyond min(m, n) = {largest}; accepted are 0 to {largest}. "
            f"Clamp it first, for example with numpy.minimum(ranks, {largest})."
        )
    return whole


def as_alpha(alpha: ArrayLike) -> NDArray[np.float64]:
    """Take alpha as float64, finite and positive; anything else is a ValueError."""
    given = np.asarray(alpha)
    if given.dtype.kind not in "iuf" or not ((given > 0) & (given < np.inf)).all():
        raise ValueError(
            f"alpha must be finite and positive; got {alpha!r}. Common choices are 16, the rank, or twice it."
        )
    return given.astype(np.float64)


def as_fraction(fraction: ArrayLike, name: str) -> NDArray[np.float64]:
    """Take a fraction as float64 within 0 … 1; anything else is a ValueError."""
    given = np.asarray(fraction)
    if given.dtype.kind not in "iuf" or not np.all((given >= 0) & (given <= 1)):
        raise ValueError(f"{name} must lie between 0 and 1; got {fraction!r}. Write 95 % as 0.95.")
    return given.astype(np.float64)


def as_factor(factor: Any, name: str) -> tuple[NDArray[Any], str]:
    """Take a factor as :func:`as_matrices` takes an update, except that its rank may be 0."""
    array, dtype = _as_array(factor, name)
    if array.ndim >= 2 and 0 in array.shape[-2:] and max(array.shape[-2:]) > 0 and dtype in STORED_DTYPES:
        return array, dtype
    return as_matrices(factor, name)


def coarsest_dtype(*dtypes: str) -> str:
    """Name the dtype with the largest rounding error among `dtypes`."""
    return max(dtypes, key=STORED_DTYPES.index)


def as_stack(array: NDArray[Any], core: int) -> NDArray[Any]:
    """Flatten the leading axes to one, keeping the last `core`; with sizes of 0 too, where -1 would be ambiguous."""
    split = array.ndim - core
    return array.reshape(math.prod(array.shape[:split]), *array.shape[split:])


def all_finite(matrices: NDArray[Any]) -> bool:
    """Tell whether no entry of a stack that is not empty is NaN or infinite."""
    # Extremes rather than a mask: no array of the update's size is made, and NaN passes through both.
    with np.errstate(invalid="ignore"):  # ml_dtypes warns of the very NaN that is looked for
        return bool(np.isfinite(matrices.max()) and np.isfinite(matrices.min()))


def check_finite(matrices: NDArray[Any], name: str = "the update") -> None:
    """Raise a ValueError that names the first matrix with an entry that is NaN or infinite, and the entry."""
    # Over everything first: an extreme of each matrix alone takes ten times as long where they are small.
    if not matrices.size or all_finite(matrices):
        return
    axes = (-2, -1)
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(matrices.max(axis=axes)) & np.isfinite(matrices.min(axis=axes))
    bad = as_stack(matrices, 2)[int(np.argmin(finite))]
    row, column = (int(i) for i in np.argwhere(~np.isfinite(bad))[0])
    raise ValueError(
        f"{name}{_first_bad_index(np.asarray(finite))} holds {bad[row, column]} at row {row}, column {column}; "
        "every entry must be finite. Look for a diverged layer or an overflow of the stored dtype."
    )
