"""Scaling rules γ(α, r), by which an adapter multiplies its product B·A."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lowrank_core._validation import as_alpha, as_ranks

__all__ = [
    "equivalent_alpha",
    "learning_gain",
    "power_rule",
    "rslora",
    "rule_name",
    "scaling_rule",
    "scalings",
    "standard",
    "unscaled",
]

ScalingRule: TypeAlias = Callable[[Any, Any], Any]
Formula: TypeAlias = Callable[[NDArray[np.float64], NDArray[np.int64]], NDArray[np.float64]]

# The named rules for an alpha and ranks of at least 1, both checked already.
FORMULAS: dict[str, Formula] = {
    "rslora": lambda alpha, rank: alpha / np.sqrt(rank),
    "standard": lambda alpha, rank: alpha / rank,
    "unscaled": lambda alpha, rank: np.ones(np.broadcast_shapes(alpha.shape, rank.shape)),
}


def standard(alpha: ArrayLike, rank: ArrayLike) -> Any:
    r"""Compute the scaling of LoRA: :math:`\gamma = \alpha / r`.

    Parameters
    ----------
    alpha : array_like
        Finite and positive.
    rank : array_like of int
        At least 0; broadcast against `alpha`. The scaling at rank 0 is 0.

    Returns
    -------
    float64 or ndarray of float64
        Of the broadcast shape.

    Raises
    ------
    ValueError
        If alpha is not finite and positive, or a rank is negative or not a whole number.

    See Also
    --------
    rslora, unscaled, power_rule : Other rules.
    equivalent_alpha : The alpha that keeps a scaling under another rule.

    References
    ----------
    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685, §4.1.

    Examples
    --------
    >>> from lowrank_core import standard
    >>> standard(16, [4, 8, 64])
    array([4.  , 2.  , 0.25])
    """
    return _scaling(alpha, rank, FORMULAS["standard"])


def rslora(alpha: ArrayLike, rank: ArrayLike) -> Any:
    r"""Compute the rank-stabilised scaling: :math:`\gamma = \alpha / \sqrt{r}`.

    Parameters
    ----------
    alpha : array_like
        Finite and positive.
    rank : array_like of int
        At least 0; broadcast against `alpha`. The scaling at rank 0 is 0.

    Returns
    -------
    float64 or ndarray of float64
        Of the broadcast shape.

    Raises
    ------
    ValueError
        If alpha is not finite and positive, or a rank is negative or not a whole number.

    See Also
    --------
    standard, unscaled, power_rule : Other rules.

    References
    ----------
    Kalajdzievski, "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA", arXiv:2312.03732, Theorem 3.2.

    Examples
    --------
    >>> from lowrank_core import rslora
    >>> rslora(16, [4, 16, 64])
    array([8., 4., 2.])
    """
    return _scaling(alpha, rank, FORMULAS["rslora"])


def unscaled(alpha: ArrayLike, rank: ArrayLike) -> Any:
    """Return a scaling of 1 for every alpha and rank, 0 at rank 0.

    Parameters
    ----------
    alpha : array_like
        Finite and positive.
    rank : array_like of int
        At least 0; broadcast against `alpha`. The scaling at rank 0 is 0.

    Returns
    -------
    float64 or ndarray of float64
        Of the broadcast shape.

    Raises
    ------
    ValueError
        If alpha is not finite and positive, or a rank is negative or not a whole number.

    See Also
    --------
    standard, rslora, power_rule : Other rules.

    Examples
    --------
    >>> from lowrank_core import unscaled
    >>> unscaled(16, [0, 8])
    array([0., 1.])
    """
    return _scaling(alpha, rank, FORMULAS["unscaled"])


def power_rule(power: float) -> ScalingRule:
    r"""Return the rule :math:`\gamma = \alpha\, r^p`; p = −1 and −1/2 are :func:`standard` and :func:`rslora`.

    Parameters
    ----------
    power : float
        Finite.

    Returns
    -------
    callable
        A rule of (alpha, rank) like :func:`standard`.

    Raises
    ------
    ValueError
        If the power is not finite.

    See Also
    --------
    error_sweep, learning_sweep : Take rules by name, or functions such as this one.

    Examples
    --------
    >>> from lowrank_core import power_rule
    >>> power_rule(-0.25)(16, 16)
    np.float64(8.0)
    """
    if not np.isfinite(power):
        raise ValueError(f"power must be finite; got {power}. -1 is alpha/r and -0.5 is alpha/sqrt(r).")

    def rule(alpha: ArrayLike, rank: ArrayLike) -> Any:
        # np.power, because ** of a scalar is another routine, which differs in the last bit from that of an array.
        return _scaling(alpha, rank, lambda a, r: a * np.power(r.astype(np.float64), power))

    rule.__name__ = rule.__qualname__ = f"power_rule({power:g})"
    return rule


def _scaling(alpha: ArrayLike, rank: ArrayLike, formula: Formula) -> Any:
    alphas, ranks = as_alpha(alpha), as_ranks(rank)
    return np.where(ranks > 0, formula(alphas, np.maximum(ranks, 1)), 0.0)[()]


RULES: dict[str, ScalingRule] = {"rslora": rslora, "standard": standard, "unscaled": unscaled}


def scaling_rule(rule: str | ScalingRule) -> ScalingRule:
    """Return the rule of a name; a callable of (alpha, rank) is returned as it is.

    Parameters
    ----------
    rule : {"standard", "rslora", "unscaled"} or callable
        A name, or a function of (alpha, rank).

    Returns
    -------
    callable

    Raises
    ------
    ValueError
        If the name is unknown.

    See Also
    --------
    power_rule : A family of rules without a name.

    Examples
    --------
    >>> from lowrank_core import scaling_rule
    >>> scaling_rule("rslora")(16, 64)
    np.float64(2.0)
    """
    if callable(rule):
        return rule
    if rule not in RULES:
        raise ValueError(
            f"unknown scaling rule {rule!r}; accepted are {', '.join(sorted(RULES))}, "
            "or a function of (alpha, rank) such as power_rule(-0.25)."
        )
    return RULES[rule]


def rule_name(rule: str | ScalingRule) -> str:
    """Return the name of a rule for a table: its own, or that of its function."""
    return rule if isinstance(rule, str) else getattr(rule, "__name__", repr(rule))


def equivalent_alpha(
    alpha: ArrayLike,
    rank: ArrayLike,
    rule: str | ScalingRule,
    *,
    to_rank: ArrayLike | None = None,
    to_rule: str | ScalingRule | None = None,
) -> Any:
    r"""Compute the alpha that keeps the scaling when the rank or the rule changes.

    Solves :math:`\gamma_{\mathrm{to}}(\alpha', r') = \gamma(\alpha, r)` for a target rule that is proportional to
    alpha: :math:`\alpha' = \gamma(\alpha, r) / \gamma_{\mathrm{to}}(1, r')`.

    Parameters
    ----------
    alpha : array_like
        Finite and positive.
    rank : array_like of int
        At least 1.
    rule : str or callable
        The rule that `alpha` belongs to.
    to_rank : array_like of int, optional
        The new rank; None: `rank`.
    to_rule : str or callable, optional
        The new rule; None: `rule`.

    Returns
    -------
    float64 or ndarray of float64

    Raises
    ------
    ValueError
        As :func:`standard` and :func:`scaling_rule`; if a rank is 0, or no alpha gives this scaling under the target
        rule (``unscaled`` is always 1).

    See Also
    --------
    standard, rslora : The rules, with their sources.

    References
    ----------
    Kalajdzievski, arXiv:2312.03732: :math:`\alpha' = \alpha \sqrt r` turns ``rslora`` into ``standard``.

    Examples
    --------
    >>> from lowrank_core import equivalent_alpha
    >>> equivalent_alpha(16, 64, "rslora", to_rule="standard")
    np.float64(128.0)
    """
    source, target = scaling_rule(rule), scaling_rule(rule if to_rule is None else to_rule)
    source_rank = as_ranks(rank)
    target_rank = source_rank if to_rank is None else as_ranks(to_rank)
    if not (np.all(source_rank > 0) and np.all(target_rank > 0)):
        raise ValueError("rank 0 has no scaling to keep; ranks of at least 1 are needed.")
    scaling = np.asarray(source(alpha, source_rank))
    kept = scaling / np.asarray(target(1.0, target_rank))
    given = np.broadcast_to(as_alpha(alpha), kept.shape)
    # A rule such as `unscaled` ignores alpha: alpha is kept, and the check below finds whether the scaling was.
    equivalent = np.where(np.asarray(target(2.0, target_rank)) == target(1.0, target_rank), given, kept)
    if not np.allclose(target(equivalent, target_rank), scaling, rtol=1e-12, atol=0.0):
        raise ValueError(
            f"no alpha gives the scaling {scaling[()]} under the rule {rule_name(target)!r}, "
            "which is not proportional to alpha; choose a rule such as 'standard' or 'rslora'."
        )
    return equivalent[()]


def learning_gain(alpha: ArrayLike, rank: ArrayLike, rule: str | ScalingRule) -> Any:
    r"""Compute the gain of one step of gradient descent: :math:`\gamma^2 r`.

    From B = 0, one step at rate η moves the update by :math:`\eta\gamma^2 \Delta A^T A`, and
    :math:`E[A^T A] = r\,\mathrm{var}\,I`: the gain is α²/r for ``standard`` and α² for ``rslora``.

    Parameters
    ----------
    alpha : array_like
        Finite and positive.
    rank : array_like of int
        At least 0; broadcast against `alpha`.
    rule : str or callable
        By name, or a function of (alpha, rank).

    Returns
    -------
    float64 or ndarray of float64

    Raises
    ------
    ValueError
        As :func:`standard` and :func:`scaling_rule`.

    See Also
    --------
    learning_sweep : Gradient descent itself.

    References
    ----------
    Kalajdzievski, arXiv:2312.03732, §3.

    Examples
    --------
    >>> from lowrank_core import learning_gain
    >>> learning_gain(16, [8, 64], "standard"), learning_gain(16, [8, 64], "rslora")
    (array([32.,  4.]), array([256., 256.]))
    """
    ranks = as_ranks(rank)
    return (np.square(_apply(rule, as_alpha(alpha), ranks)) * ranks)[()]


def scalings(rules: Sequence[str | ScalingRule], alpha: NDArray[np.float64], ranks: NDArray[np.int64]) -> NDArray[Any]:
    """Compute γ of shape (rules, *alpha, ranks); 0 at rank 0, at which a user's own rule is never called."""
    if isinstance(rules, str) or not rules:
        raise ValueError(f"rules must be a sequence such as ('standard', 'rslora'); got {rules!r}.")
    return np.array([_apply(rule, alpha[..., np.newaxis], ranks) for rule in rules])


def _apply(rule: str | ScalingRule, alpha: NDArray[np.float64], ranks: NDArray[np.int64]) -> NDArray[np.float64]:
    function = FORMULAS[rule] if isinstance(rule, str) and rule in FORMULAS else scaling_rule(rule)
    scaling = np.asarray(function(alpha, np.maximum(ranks, 1)), dtype=np.float64)
    shape = np.broadcast_shapes(alpha.shape, ranks.shape)
    table = np.where(ranks > 0, scaling if scaling.shape == shape else np.broadcast_to(scaling, shape), 0.0)
    if not np.isfinite(table).all():
        raise ValueError(f"rule {rule_name(rule)!r} gives scalings that are not finite: {table}.")
    return table
