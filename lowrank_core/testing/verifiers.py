"""Verifiers: residuals bounded as LAPACK's own tests bound them, by c·max(m, n)·eps·‖Δ‖."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank_core._dtypes import FLOATS
from lowrank_core._linalg import Scaled, scaled_to_unit
from lowrank_core._validation import as_matrices
from lowrank_core.kronecker_updates import KroneckerUpdate
from lowrank_core.spectra import Spectrum
from lowrank_core.updates import LowRankUpdate

__all__ = ["assert_eckart_young", "assert_same_update", "assert_spectrum"]

Floats = NDArray[np.float64]
_EPS64 = FLOATS["float64"].eps


def assert_spectrum(update: Any, values: Any, *, c: float = 10.0, eps: float = _EPS64) -> None:
    r"""Check singular values against those of LAPACK in float64.

    The bound is :math:`|\hat\sigma{}_i - \sigma_i| \le c \max(m, n)\,(\epsilon\,\sigma_1 + 2^{-1074})`; its last term
    is the spacing of subnormal numbers.

    Parameters
    ----------
    update : array_like, torch.Tensor, LowRankUpdate or KroneckerUpdate, shape (..., m, n)
        The matrices themselves.
    values : array_like, shape (..., k), or Spectrum
        Leading k singular values, descending. The norm of a Spectrum has the same bound, relative to itself.
    c : float
        Constant of the bound.
    eps : float
        Rounding unit of the arithmetic that computed the values: 2⁻⁵² for float64, 2⁻²³ for float32.

    Raises
    ------
    AssertionError
        If a value is out of bound, negative, or larger than the one before it.

    See Also
    --------
    assert_eckart_young : For truncations.

    References
    ----------
    Anderson et al., "LAPACK Users' Guide", 3rd ed., §4.9; LAPACK Working Note 41 for the test ratios.

    Examples
    --------
    >>> import numpy as np
    >>> from lowrank_core.testing import assert_spectrum
    >>> assert_spectrum(np.diag([3.0, 4.0]), [4.0, 3.0])
    """
    scaled, exponents = _scaled(update)
    norm = None
    if isinstance(values, Spectrum):
        values, norm = values.values, np.ldexp(values.norm, -exponents)
    given = np.atleast_1d(np.asarray(values, dtype=np.float64))
    exact = np.linalg.svd(scaled, compute_uv=False)
    if given.shape[:-1] != exact.shape[:-1] or given.shape[-1] > exact.shape[-1]:
        raise AssertionError(f"values of shape {given.shape} do not belong to updates of shape {scaled.shape}")
    computed = np.ldexp(given, -exponents[..., np.newaxis])
    if np.any(computed < 0) or np.any(computed[..., 1:] > computed[..., :-1]):
        raise AssertionError("singular values must not be negative, and must descend along the last axis")
    bound = _bound(scaled, exponents, exact[..., 0], c, eps)[..., np.newaxis]
    _assert_within(np.abs(computed - exact[..., : computed.shape[-1]]), bound, "a singular value")
    if norm is not None:
        true_norm = np.linalg.norm(scaled, axis=(-2, -1))
        _assert_within(np.abs(norm - true_norm), _bound(scaled, exponents, true_norm, c, eps), "the norm")


def assert_same_update(actual: Any, expected: Any, *, c: float = 30.0, eps: float = _EPS64) -> None:
    r"""Check one update against another.

    The bound is :math:`c \max(m, n)\,(\epsilon\,\lVert \Delta \rVert_F + 2^{-1074})` on
    :math:`\lVert \hat\Delta - \Delta \rVert_F`. With U Σ Vᵀ as the first update, this is the
    residual of a decomposition in LAPACK's normalised form.

    Parameters
    ----------
    actual, expected : array_like, torch.Tensor, LowRankUpdate or KroneckerUpdate, shape (..., m, n)
        The computed update, and the exact one.
    c : float
        Constant of the bound. LAPACK's own tests allow 30 for an SVD with vectors, whose residual reaches half of it.
    eps : float
        As in :func:`assert_spectrum`.

    Raises
    ------
    AssertionError
        If the shapes differ or the residual is out of bound, for any matrix of a stack.

    References
    ----------
    LAPACK Working Note 41, for the test ratios.

    Examples
    --------
    >>> import numpy as np
    >>> from lowrank_core.testing import assert_same_update
    >>> U, values, Vt = np.linalg.svd(np.arange(6.0).reshape(2, 3), full_matrices=False)
    >>> assert_same_update((U * values) @ Vt, np.arange(6.0).reshape(2, 3))
    """
    exact, exponents = _scaled(expected)
    computed = np.ldexp(_dense(actual), -exponents[..., np.newaxis, np.newaxis])
    if computed.shape != exact.shape:
        raise AssertionError(f"an update of shape {exact.shape} is expected; got shape {computed.shape}")
    bound = _bound(exact, exponents, np.linalg.norm(exact, axis=(-2, -1)), c, eps)
    _assert_within(np.linalg.norm(computed - exact, axis=(-2, -1)), bound, "the update")


def assert_eckart_young(update: Any, approximation: Any, rank: int, *, c: float = 30.0, eps: float = _EPS64) -> None:
    r"""Check an approximation of rank r against the best one, in the Frobenius and the spectral norm.

    With :math:`\tau = c \max(m, n)\,(\epsilon\,\lVert \Delta \rVert_F + 2^{-1074})`: its rank is at most r, that is
    :math:`\sigma_{r+1}(X) \le \tau`; :math:`\lVert \Delta - X \rVert_F \le \sqrt{T_r} + \tau`; and
    :math:`\lVert \Delta - X \rVert_2 \le \sigma_{r+1}(\Delta) + \tau`.

    Parameters
    ----------
    update, approximation : array_like, torch.Tensor, LowRankUpdate or KroneckerUpdate, shape (..., m, n)
        The exact update, and its approximation.
    rank : int
        From 0 to min(m, n).
    c, eps : float
        As in :func:`assert_same_update`.

    Raises
    ------
    AssertionError
        If the shapes differ or a bound is exceeded, for any matrix of a stack.

    See Also
    --------
    lowrank_core.truncate : The best approximation.

    References
    ----------
    Eckart and Young, Psychometrika 1 (1936) 211; Mirsky, Quart. J. Math. 11 (1960) 50, theorem 3.

    Examples
    --------
    >>> import numpy as np
    >>> from lowrank_core.testing import assert_eckart_young
    >>> assert_eckart_young(np.diag([3.0, 4.0]), np.diag([0.0, 4.0]), rank=1)
    """
    exact, exponents = _scaled(update)
    computed = np.ldexp(_dense(approximation), -exponents[..., np.newaxis, np.newaxis])
    if computed.shape != exact.shape:
        raise AssertionError(f"an approximation of shape {exact.shape} is expected; got shape {computed.shape}")
    slack = _bound(exact, exponents, np.linalg.norm(exact, axis=(-2, -1)), c, eps)
    tail = np.linalg.svd(exact, compute_uv=False)[..., rank:]
    beyond = np.linalg.svd(computed, compute_uv=False)[..., rank:]
    residual = np.linalg.svd(exact - computed, compute_uv=False)
    _assert_within(_largest(beyond), slack, f"singular value {rank + 1} of the approximation")
    _assert_within(
        np.linalg.norm(residual, axis=-1), np.linalg.norm(tail, axis=-1) + slack, "the Frobenius norm of the residual"
    )
    _assert_within(_largest(residual), _largest(tail) + slack, "the spectral norm of the residual")


def _largest(values: NDArray[Any]) -> NDArray[Any]:
    largest: NDArray[Any] = np.max(values, axis=-1, initial=0.0)
    return largest


def _dense(update: Any) -> Floats:
    if isinstance(update, LowRankUpdate | KroneckerUpdate):
        return update.to_dense()
    return as_matrices(update)[0].astype(np.float64)


def _scaled(update: Any) -> Scaled:
    return scaled_to_unit(_dense(update))


def _bound(scaled: Floats, exponents: NDArray[np.int64], size: NDArray[Any], c: float, eps: float) -> NDArray[Any]:
    spacing = np.ldexp(1.0, -1074 - exponents)
    bound: NDArray[Any] = c * max(scaled.shape[-2:]) * (eps * size + spacing)
    return bound


def _assert_within(error: NDArray[Any], bound: NDArray[Any], what: str) -> None:
    # Negated, so that a NaN does not pass.
    exceeded = ~(error <= bound)
    if not np.any(exceeded):
        return
    index = np.unravel_index(int(np.argmax(exceeded)), np.shape(exceeded))
    position = f" at index {tuple(int(i) for i in index)}" if index else ""
    worst, limit = np.asarray(error)[index], np.broadcast_to(bound, np.shape(error))[index]
    raise AssertionError(
        f"{what}{position}: {worst:.3g} where at most {limit:.3g} is allowed, in units of the power of two above the "
        "largest entry"
    )
