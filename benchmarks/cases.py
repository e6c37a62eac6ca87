"""Cases of the asv suite and of ``compare.py``: a question, our way to its answer, and those of the peers.

Every case computes the error of an answer, since a timing counts only with its answer checked. This module has the
classes, and the cases of matrices and products to values or factors; ``sweep_cases.py`` has those of spectra.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks import inputs
from lowrank_core import KroneckerUpdate, LowRankUpdate, spectrum, truncate

Floats = NDArray[np.float64]

# The distribution of a module where its name differs.
DISTRIBUTIONS = {"sklearn": "scikit-learn"}


@dataclass(frozen=True)
class Contender:
    """A way to an answer."""

    name: str
    call: Callable[[], Any]
    needs: tuple[str, ...] = ()  # modules beyond NumPy
    blas: bool = True  # whether the number of BLAS threads matters to it
    fraction: float = 1.0  # of the whole work, that a call does: its time is divided by this
    own_clock: bool = False  # the answer is the time that a process took by its own clock


@dataclass(frozen=True)
class Case:
    """A question, and the ways to its answer on one input."""

    name: str
    ours: Contender
    peers: tuple[Contender, ...]
    error: Callable[[Any], float]
    unit: str
    bound: float  # a larger error of our answer makes it wrong
    peer_bound: float = np.inf  # a larger error of a peer's answer means that it answers another question
    by_exactness: bool = False  # peers trade exactness for time: rivals are those at least as exact as our answer
    limits: tuple[Contender, ...] = ()  # the machine's own time for the part that cannot be avoided

    def missing(self) -> list[str]:
        """Return the distributions that are needed and not installed."""
        modules = {module for contender in (self.ours, *self.peers) for module in contender.needs}
        return sorted(DISTRIBUTIONS.get(module, module) for module in modules if find_spec(module) is None)

    def against(self, peer: str) -> Case:
        """Return the case with the peers of this name alone."""
        return replace(self, peers=tuple(contender for contender in self.peers if contender.name == peer))


def check(case: Case, answer: Any) -> float:
    """Return the error of our answer; a RuntimeError if it is wrong."""
    error = case.error(answer)
    if not error <= case.bound:
        raise RuntimeError(f"{case.name}: the answer errs by {error:.3g} {case.unit}; {case.bound:.3g} is allowed.")
    return error


@cache
def checked(build: Callable[..., Case], *arguments: Any) -> Case:
    """Return a case, warmed up and with its answer checked; once a process, since asv sets up before every sample."""
    case = build(*arguments)
    check(case, case.ours.call())
    return case


def _off(answer: Any, values: Floats, eps: float) -> float:
    """Return the largest error of singular values (..., p), in eps·σ₁ of their matrix."""
    difference = np.abs(np.asarray(answer, dtype=np.float64) - values)
    return float(np.max(difference / values[..., :1])) / eps


def _values_case(
    name: str,
    matrices: NDArray[Any],
    values: Floats,
    peers: tuple[Contender, ...],
    workers: int | None = None,
    limits: tuple[Contender, ...] = (),
) -> Case:
    eps, n = float(np.finfo(matrices.dtype).eps), matrices.shape[-1]
    lapack = 10.0 * n
    return Case(
        name,
        Contender("lowrank_core", lambda: spectrum(matrices, workers=workers).values),
        peers,
        error=partial(_off, values=values, eps=eps),
        unit="eps·σ₁",
        bound=lapack if matrices.dtype == np.float64 else 1.0,
        peer_bound=lapack,
        limits=limits,
    )


def _numpy_values(matrices: NDArray[Any]) -> Contender:
    return Contender("numpy", lambda: np.linalg.svd(matrices, compute_uv=False))


def stack(count: int, n: int, dtype: str, workers: int | None = None) -> Case:
    """All singular values of a stack."""
    matrices, values = inputs.stack(count, n, dtype)
    return _values_case(f"{count:,} × {n}², {dtype}", matrices, values, (_numpy_values(matrices),), workers)


def two_workers(count: int, n: int, dtype: str) -> Case:
    """A stack on two workers, against ourselves on one."""
    case, alone = stack(count, n, dtype, 2), stack(count, n, dtype, 1)
    one = replace(alone.ours, name="1 worker", blas=False)
    return replace(case, name=f"{case.name}, 2 workers", peers=(one,))


def doubles(count: int, m: int, n: int) -> Case:
    """All singular values of float64 matrices whose entries are drawn, against LAPACK's values."""
    drawn = inputs.generator(count, m, n).standard_normal((count, m, n))
    matrices = drawn if count > 1 else drawn[0]
    peers = (_numpy_values(matrices), Contender("torch", lambda: _torch_values(matrices), needs=("torch",)))
    name = f"{m:,} × {n}, float64" if count == 1 else f"{count:,} × {m} × {n}, float64"
    return _values_case(name, matrices, np.linalg.svd(matrices, compute_uv=False), peers)


def large(n: int, dtype: str = "float32", kind: str = "even") -> Case:
    """All singular values of one matrix, large as a rule, with a spectrum of a kind."""
    values = inputs.SPECTRA[kind](n, dtype)
    matrix = inputs.in_hadamard_bases(values, inputs.generator(n)).astype(dtype)
    peers = (
        _numpy_values(matrix),
        Contender("scipy", lambda: import_module("scipy.linalg").svdvals(matrix, check_finite=False), needs=("scipy",)),
        Contender("torch", lambda: _torch_values(matrix), needs=("torch",)),
    )
    exact = matrix.astype(np.float64)
    copy = np.empty_like(exact)
    limits = (
        Contender("its float64 Gram matrix alone", lambda: exact.T @ exact),
        # Which is n³ operations, since BLAS forms half of it; a reduction to a band is 4/3 · n³ more.
        Contender("that and a band, at its speed", lambda: exact.T @ exact, fraction=3 / 7),
        # One pass over half of what is left of n² numbers for each column: 8n³/6 bytes, where a copy moves 16n².
        Contender("memcpy of what a one-stage reduction reads", lambda: np.copyto(copy, exact), fraction=12.0 / n),
    )
    return _values_case(f"{n}², {dtype}", matrix, values, peers, limits=limits)


def _torch_values(matrix: NDArray[Any]) -> NDArray[Any]:
    torch: Any = import_module("torch")
    values: NDArray[Any] = torch.linalg.svdvals(torch.from_numpy(matrix)).numpy()
    return values


def leading(n: int, power: float, rank: int, vectors: bool) -> Case:
    """The leading part of one large matrix whose values fall as i^-power: its values, or its factors.

    The peers compute vectors in both cases. The excess is over the best possible error at that rank: of the factors,
    or of factors with the energy of the values.
    """
    matrix, values = inputs.falling(n, power)
    fall = {0.5: "1/√i", 1.0: "1/i"}[power]
    columns = inputs.generator(n, 32).standard_normal((n, 32), dtype=np.float32)
    rows = np.ascontiguousarray(columns.T)
    exact, basis = matrix.astype(np.float64), inputs.generator(n, rank).standard_normal((n, rank))
    # As many as krylov needs for these spectra.
    blocks = {0.5: 7, 1.0: 6}[power]
    return Case(
        f"{n}², {fall}, leading {rank}" + (", with factors" if vectors else ""),
        Contender(
            "lowrank_core",
            (lambda: _factors_of(truncate(matrix, rank))) if vectors else (lambda: spectrum(matrix, rank=rank).values),
        ),
        (*_torch_lowrank(matrix, rank), *_sklearn_randomized(matrix, rank)),
        error=lambda answer: _excess(answer, matrix, float(np.sum(values[rank:] ** 2))),
        unit="excess error",
        bound=0.5e-4,
        by_exactness=True,
        limits=(
            Contender(
                f"BLAS's products with {blocks} blocks of 32 columns",
                lambda: (matrix @ columns, rows @ matrix),
                fraction=1 / blocks,
            ),
            Contender(f"one float64 product with {rank} columns", lambda: exact @ basis),
        ),
    )


def _factors_of(update: LowRankUpdate) -> tuple[NDArray[Any], NDArray[Any]]:
    return update.B, update.A


def _torch_lowrank(matrix: NDArray[Any], rank: int) -> list[Contender]:
    def call(q: int, niter: int) -> tuple[NDArray[Any], NDArray[Any]]:
        torch: Any = import_module("torch")
        torch.manual_seed(0)
        U, S, V = torch.svd_lowrank(torch.from_numpy(matrix), q=q, niter=niter)
        return (U[:, :rank] * S[:rank]).numpy(), V[:, :rank].T.numpy()

    # With as many spare vectors as scikit-learn takes, and with none.
    return [
        Contender(f"torch q={q} niter={niter}", partial(call, q, niter), needs=("torch",))
        for q in (rank, rank + 10)
        for niter in (2, 4, 8)
    ]


def _sklearn_randomized(matrix: NDArray[Any], rank: int) -> list[Contender]:
    def call(n_iter: int | str) -> tuple[NDArray[Any], NDArray[Any]]:
        randomized_svd = import_module("sklearn.utils.extmath").randomized_svd
        U, S, Vt = randomized_svd(matrix, rank, n_iter=n_iter, random_state=0)
        return U * S, Vt

    return [
        Contender(f"sklearn n_iter={n_iter}", partial(call, n_iter), needs=("sklearn",)) for n_iter in (2, 4, "auto")
    ]


def _excess(answer: Any, matrix: NDArray[Any], best: float) -> float:
    """Return an approximation's relative excess error over √best; for values alone, from the energy that they leave."""
    if not isinstance(answer, tuple):
        left = _energy(matrix) - float(np.sum(answer**2))
    else:
        B, A = (factor.astype(np.float64) for factor in answer)
        blocks = range(0, len(matrix), 512)
        left = sum(_energy(matrix[i : i + 512] - B[i : i + 512] @ A) for i in blocks)
    # Values with more energy than the matrix (a negative excess) are as wrong as values with less.
    return float(abs(np.sqrt(max(left, 0.0) / best) - 1.0))


def _energy(matrix: NDArray[Any]) -> float:
    return float(np.sum(np.square(matrix, dtype=np.float64)))


def truncation(count: int, n: int, dtype: str, rank: int) -> Case:
    """The best factors of every matrix of a stack, against NumPy's SVD of the stack."""
    matrices, values = inputs.stack(count, n, dtype)
    best = np.sum(values[:, rank:] ** 2, axis=-1)

    def error(answer: tuple[NDArray[Any], NDArray[Any]]) -> float:
        residuals = matrices - answer[0].astype(np.float64) @ answer[1].astype(np.float64)
        return float(np.max(np.abs(np.sqrt(np.sum(residuals**2, axis=(-2, -1)) / best) - 1.0)))

    def by_numpy() -> tuple[NDArray[Any], NDArray[Any]]:
        U, S, Vt = np.linalg.svd(matrices, full_matrices=False)
        return U[..., :rank] * S[:, np.newaxis, :rank], Vt[:, :rank]

    ours = Contender("lowrank_core", lambda: _factors_of(truncate(matrices, rank)))
    name = f"{count:,} × {n}², {dtype}, leading {rank}"
    return Case(name, ours, (Contender("numpy", by_numpy),), error, unit="excess error", bound=1e-6)


def leading_double(n: int, rank: int) -> Case:
    """The leading factors of one large float64 matrix of Gaussian noise, whose values have no gap, against ARPACK."""
    matrix = inputs.generator(n, rank).standard_normal((n, n))
    best = float(np.sum(np.linalg.svd(matrix, compute_uv=False)[rank:] ** 2))

    def by_arpack() -> tuple[NDArray[Any], NDArray[Any]]:
        U, S, Vt = import_module("scipy.sparse.linalg").svds(matrix, k=rank)
        return U * S, Vt

    return Case(
        f"{n:,}², Gaussian, float64, leading {rank}",
        Contender("lowrank_core", lambda: _factors_of(truncate(matrix, rank))),
        (Contender("scipy svds", by_arpack, needs=("scipy",)),),
        error=lambda answer: _excess(answer, matrix, best),
        unit="excess error",
        bound=1e-12,
    )


def factors(size: int, rank: int, count: int | None = None) -> Case:
    """All singular values of a product in float32, or of a stack of them, from its factors."""
    B, A = inputs.factors(size, rank, count)
    update = LowRankUpdate(B, A)
    values = _core_values(B.astype(np.float64), A.astype(np.float64))
    copies = np.empty_like(B), np.empty_like(A)
    B_exact, A_exact = B.astype(np.float64), A.astype(np.float64)

    def copy() -> None:
        np.copyto(copies[0], B)
        np.copyto(copies[1], A)

    return Case(
        ("" if count is None else f"{count} × ") + f"({size} × {rank})({rank} × {size}), float32",
        Contender("lowrank_core", lambda: spectrum(update).values),
        (
            Contender("numpy QR and core", lambda: _core_values(B, A)),
            Contender("numpy QR with Q, and core", lambda: _core_values(B, A, mode="reduced")),
        ),
        error=partial(_off, values=values, eps=float(np.finfo(np.float32).eps)),
        unit="eps·σ₁",
        bound=1.0,
        peer_bound=10.0 * size,
        limits=(
            Contender("memcpy of the factors", copy, blas=False),
            Contender(
                "their float64 Gram matrices alone",
                lambda: (np.swapaxes(B_exact, -1, -2) @ B_exact, A_exact @ np.swapaxes(A_exact, -1, -2)),
            ),
        ),
    )


def _core_values(B: NDArray[Any], A: NDArray[Any], mode: Literal["r", "reduced"] = "r") -> NDArray[Any]:
    factored = [np.linalg.qr(X, mode=mode) for X in (B, np.swapaxes(A, -1, -2))]
    R_B, R_A = (factor if mode == "r" else factor[1] for factor in factored)
    return np.linalg.svd(R_B @ np.swapaxes(R_A, -1, -2), compute_uv=False)


def kronecker(n: int, dtype: str) -> Case:
    """All n² singular values of the Kronecker product of two n × n matrices, as LyCORIS factors an n² × n² layer."""
    (left, right), known = inputs.stack(2, n, dtype)
    update = KroneckerUpdate(left, right)
    values = _sorted_products(known)
    return Case(
        f"{n}² ⊗ {n}², {dtype}",
        Contender("lowrank_core", lambda: spectrum(update).values),
        (
            Contender(
                "numpy of both sides",
                lambda: _sorted_products([np.linalg.svd(side, compute_uv=False) for side in (left, right)]),
            ),
        ),
        error=partial(_off, values=values, eps=float(np.finfo(dtype).eps)),
        unit="eps·σ₁",
        bound=10.0 * n if dtype == "float64" else 1.0,
        peer_bound=20.0 * n,
        limits=(Contender("the sort alone", lambda: np.sort(np.outer(*known), axis=None), blas=False),),
    )


def _sorted_products(sides: Any) -> Floats:
    return np.sort(np.outer(*sides), axis=None)[::-1]
