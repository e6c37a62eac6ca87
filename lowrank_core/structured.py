"""Hadamard products of low-rank updates, and Tucker factors, as low-rank updates; none is made dense."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lowrank_core._linalg import scaled_to_unit
from lowrank_core._validation import as_matrices, as_real, broadcast_batches, check_finite
from lowrank_core.updates import Components, LowRankUpdate, assembled, check_terms, unit_components, with_factors

__all__ = ["low_rank_hadamard", "low_rank_tucker"]


def low_rank_hadamard(first: LowRankUpdate, second: LowRankUpdate) -> LowRankUpdate:
    r"""Return the entry-by-entry product of two updates in factored form, as a product of rank r₁r₂.

    Row by row the Kronecker product of both B (their face-splitting product [1]_), column by column that of both A:

    .. math:: (\gamma_1 B_1 A_1) \circ (\gamma_2 B_2 A_2) = \gamma_1 \gamma_2\,(B_1 \bullet B_2)\,(A_1 * A_2)

    Parameters
    ----------
    first, second : LowRankUpdate, shape (..., m, n)
        Of one shape; batch axes broadcast. LyCORIS' LoHa is that of ``hada_w1_a @ hada_w1_b`` and
        ``hada_w2_a @ hada_w2_b``.

    Returns
    -------
    LowRankUpdate
        Of rank r₁·r₂, which may be beyond min(m, n), with factors in float64 and scaling 1. Where a factor would leave
        the range of float64, a power of two of its components moves to the other.

    Raises
    ------
    ValueError
        If one is not a LowRankUpdate or has an entry that is not finite, if the shapes disagree, or if the product
        does not fit float64.

    See Also
    --------
    low_rank_sum : The sum of updates.
    low_rank_tucker : Both updates of a LoHa convolution with a Tucker core.

    References
    ----------
    .. [1] Slyusar, "A family of face products of matrices and its properties", Cybern. Syst. Anal. 35 (1999) 379; for
       the bound r₁r₂ on the rank, Horn and Johnson, "Topics in Matrix Analysis", theorem 5.1.7.
    .. [2] Hyeon-Woo et al., "FedPara", arXiv:2108.06098, proposition 1, for LoHa.

    Examples
    --------
    >>> import numpy as np
    >>> from lowrank_core import LowRankUpdate, low_rank_hadamard
    >>> first = LowRankUpdate([[1.0], [2.0]], [[1.0, 2.0, 3.0]])
    >>> second = LowRankUpdate(np.eye(2), np.ones((2, 3)), scaling=0.5)
    >>> low_rank_hadamard(first, second).to_dense()
    array([[0.5, 1. , 1.5],
           [1. , 2. , 3. ]])
    """
    terms = {"first": first, "second": second}
    check_terms(terms)
    one, other = (unit_components(term) for term in terms.values())
    pairs = Components(
        _all_pairs(np.multiply, one.B, other.B, 3),
        _all_pairs(np.multiply, one.A, other.A, 3),
        _all_pairs(np.add, one.B_exponents, other.B_exponents, 1),
        _all_pairs(np.add, one.A_exponents, other.A_exponents, 1),
    )
    scaled = with_factors(pairs, first.scaling, second.scaling)
    return assembled(scaled, "the Hadamard product", "divide an update by a power of two first")


def low_rank_tucker(up: ArrayLike, mid: ArrayLike, down: ArrayLike, scaling: float = 1.0) -> LowRankUpdate:
    r"""Return the update of a convolution with a Tucker core, as a product of rank r.

    :math:`\Delta_{pqk} = \gamma \sum_{ij} \text{up}_{pi}\,\text{mid}_{ijk}\,\text{down}_{jq}` [1]_ is, with its
    kernel's positions k beside the inputs q, the product of B = up and :math:`A = \text{mid} \times_2 \text{down}`.

    Parameters
    ----------
    up : array_like, shape (..., m, r)
        LyCORIS' ``lora_up``; the transpose of ``hada_w1_a`` or ``lokr_w2_a`` beside a core ``hada_t1`` or ``lokr_t2``.
    mid : array_like, shape (..., r, s, k)
        The core, ``lora_mid``, ``hada_t1`` or ``lokr_t2``, its kernel's axes flattened to one:
        ``mid.reshape(r, s, -1)``.
    down : array_like, shape (..., s, n)
        ``lora_down``, ``hada_w1_b`` or ``lokr_w2_b``. Batch axes broadcast.
    scaling : float
        Effective scale γ, finite, of either sign.

    Returns
    -------
    LowRankUpdate
        Of rank r and shape (..., m, n·k), the weight (m, n, kh, kw) of a convolution with its last axes flattened;
        factors in float64, scaling 1.

    Raises
    ------
    ValueError
        If shapes disagree, an entry or the scaling is not finite, or the product does not fit float64.

    See Also
    --------
    low_rank_hadamard : Of two such updates, LoHa with a Tucker core.
    KroneckerUpdate : Its right side may be such an update, as in LoKr with a Tucker core.

    References
    ----------
    .. [1] Kolda and Bader, "Tensor Decompositions and Applications", SIAM Rev. 51 (2009) 455, §4.

    Examples
    --------
    >>> import numpy as np
    >>> from lowrank_core import low_rank_tucker
    >>> rng = np.random.default_rng(0)
    >>> up, mid, down = (rng.standard_normal(shape) for shape in [(8, 2), (2, 2, 3, 3), (2, 5)])
    >>> update = low_rank_tucker(up, mid.reshape(2, 2, -1), down)
    >>> update.rank, update.shape
    (2, (8, 45))
    >>> weight = np.einsum("ijkl,jq,pi->pqkl", mid, down, up)
    >>> np.allclose(update.to_dense().reshape(8, 5, 3, 3), weight)
    True
    """
    (U, _), core, (V, _) = as_matrices(up, "up"), as_real(mid, "mid"), as_matrices(down, "down")
    if core.ndim < 3 or core.shape[-3:-1] != (U.shape[-1], V.shape[-2]):
        raise ValueError(
            f"mid has shape {core.shape}; with up of shape {U.shape} and down of shape {V.shape} it is (..., r, s, k), "
            f"r = {U.shape[-1]} and s = {V.shape[-2]}. Flatten the axes of its kernel to one, for example with "
            f"mid.reshape({U.shape[-1]}, {V.shape[-2]}, -1)."
        )
    r, s, k = core.shape[-3:]
    cores = core.reshape(*core.shape[:-3], r, s * k)
    broadcast_batches({"up": U.shape[:-2], "mid": core.shape[:-3], "down": V.shape[:-2]})
    for factor, name in ((U, "up"), (cores, "mid"), (V, "down")):
        check_finite(factor, name)
    # Scaled first: entries of 1e±200 have no product.
    (cores, core_exponents), (V, V_exponents) = scaled_to_unit(cores), scaled_to_unit(V)
    slices = np.swapaxes(cores.reshape(*core.shape), -1, -2) @ V[..., np.newaxis, :, :]
    A = np.swapaxes(slices, -1, -2).reshape(*slices.shape[:-3], r, V.shape[-1] * k)
    update = LowRankUpdate(U, A, scaling)
    components = unit_components(update)
    exponents = components.A_exponents + (core_exponents + V_exponents)[..., np.newaxis]
    scaled = with_factors(components._replace(A_exponents=exponents), update.scaling, 1.0)
    return assembled(scaled, "the product", "divide a factor by a power of two first")


def _all_pairs(combine: np.ufunc, first: NDArray[Any], second: NDArray[Any], core: int) -> NDArray[Any]:
    """Combine each of the components (..., r, ...) of one factor with each of another's, shape (..., r·s, ...)."""
    rest = (slice(None),) * (core - 1)
    pairs = combine(first[(..., slice(None), np.newaxis, *rest)], second[(..., np.newaxis, slice(None), *rest)])
    split = pairs.ndim - core - 1
    count = pairs.shape[split] * pairs.shape[split + 1]
    return np.asarray(pairs.reshape(*pairs.shape[:split], count, *pairs.shape[split + 2 :]))
