"""Orthonormal rows, by Cholesky QR where the rows are well conditioned, by Householder QR elsewhere."""

from __future__ import annotations

import numpy as np

from lowrank_core._linalg.values import Floats

__all__ = ["lq"]

# How far from orthonormal one Cholesky QR may leave rows for no second to follow: as far as two leave them.
ORTHONORMAL = 4e-15


def lq(block: Floats, cholesky_tol: float) -> tuple[Floats, Floats]:
    """Return lower triangular L and orthonormal rows Q with block = L Q, by Cholesky QR twice or by Householder QR.

    Cholesky QR squares the condition number, and a second time, where rows need it, repairs that (Yamamoto et al., ETNA
    44 (2015) 306) if after the first no entry of the Gram matrix is further than `cholesky_tol` from orthonormal. Rows
    are first scaled to about one size by powers of two. Matrix products make it several times as fast as Householder
    QR.
    """
    if cholesky_tol > 0.0:
        by_cholesky = _cholesky_lq(block, cholesky_tol)
        if by_cholesky is not None:
            return by_cholesky
        if block.ndim > 2 and len(block) > 1:
            # One by one, so that a batch changes nothing.
            parts = [lq(block[i : i + 1], cholesky_tol) for i in range(len(block))]
            return np.concatenate([L for L, _ in parts]), np.concatenate([Q for _, Q in parts])
    Q, R = np.linalg.qr(block.swapaxes(-1, -2))
    return np.ascontiguousarray(R.swapaxes(-1, -2)), np.ascontiguousarray(Q.swapaxes(-1, -2))


def _cholesky_lq(block: Floats, tol: float) -> tuple[Floats, Floats] | None:
    """Return L and Q of all blocks by Cholesky QR, or None if one of them is not well conditioned."""
    # A norm that is not 0 or infinite is within 2^±538, as its square is a number.
    sizes = np.frexp(np.linalg.norm(block, axis=-1, keepdims=True))[1]
    rows = block * np.ldexp(1.0, -sizes)
    try:
        first = np.linalg.cholesky(rows @ rows.swapaxes(-1, -2))
        rows = np.linalg.inv(first) @ rows
        gram = rows @ rows.swapaxes(-1, -2)
        distances = np.max(np.abs(gram - np.eye(gram.shape[-1])), axis=(-1, -2), initial=0.0)
        done = distances <= ORTHONORMAL
        if np.all(done):
            return np.ldexp(first, sizes), rows
        if np.all(distances < tol):
            second = np.linalg.cholesky(gram)
            L, Q = first @ second, np.linalg.inv(second) @ rows
            # For a second time only where it is needed, so that a batch changes nothing.
            L[done], Q[done] = first[done], rows[done]
            return np.ldexp(L, sizes), Q
    except np.linalg.LinAlgError:
        pass
    return None
