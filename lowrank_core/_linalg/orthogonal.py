"""Orthonormal rows, by Cholesky QR where the rows are well conditioned, by Householder QR elsewhere."""

from __future__ import annotations

import numpy as np

from lowrank_core._linalg.values import Floats

__all__ = ["lq"]


def lq(block: Floats, cholesky_tol: float) -> tuple[Floats, Floats]:
    """Return a lower triangular L and orthonormal rows Q with block = L Q, by Cholesky QR twice or by Householder QR.

    Cholesky QR squares the condition number, and a second time repairs that (Yamamoto et al., ETNA 44 (2015) 306) where
    after the first no entry of the Gram matrix is further than `cholesky_tol` from orthonormal. Rows are first scaled
    to about one size by powers of two. Matrix products make it several times as fast as Householder QR.
    """
    if cholesky_tol > 0.0:
        sizes = np.frexp(np.linalg.norm(block, axis=1))[1][:, np.newaxis]
        rows = np.ldexp(block, -sizes)
        try:
            first = np.linalg.cholesky(rows @ rows.T)
            rows = np.linalg.inv(first) @ rows
            gram = rows @ rows.T
            if np.all(np.abs(gram - np.eye(len(gram))) < cholesky_tol):
                second = np.linalg.cholesky(gram)
                return np.ldexp(first @ second, sizes), np.linalg.inv(second) @ rows
        except np.linalg.LinAlgError:
            pass
    Q, R = np.linalg.qr(block.T)
    return np.ascontiguousarray(R.T), np.ascontiguousarray(Q.T)
