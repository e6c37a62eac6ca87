"""What is measured, once for the asv suite and for ``compare.py``: a question, our way to its answer, the peers' ways.

Every case can tell by how much an answer errs, for a timing counts only with its answer checked.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks import inputs
from lowrank_core import (
    LowRankUpdate,
    Spectrum,
    error_sweep,
    facts_update,
    learning_sweep,
    scaling_rule,
    spectrum,
    style_update,
    truncate,
)
from lowrank_core.cli.article import Settings
from lowrank_core.cli.article import run as run_article

Floats = NDArray[np.float64]

# What pip calls a module that is not there.
DISTRIBUTIONS = {"sklearn": "scikit-learn"}

ALPHA = 16.0
RULES = ("standard", "rslora", "unscaled")
ARTICLE_RANKS = (2, 4, 8, 16, 32, 48)
# The article's facts errors under α/r and α/√r, in every digit that it prints.
ARTICLE_ERRORS = (
    (2.165376, 1.481534, 1.000000, 0.701083, 0.627560, 0.685698),
    (3.016290, 2.858262, 2.619609, 2.251191, 1.701114, 1.296699),
)
# The demo prints the first of the article's errors.
DEMO_FIGURE = "6.608"


@dataclass(frozen=True)
class Contender:
    """A way to an answer."""

    name: str
    call: Callable[[], Any]
    needs: tuple[str, ...] = ()  # modules beyond NumPy
    blas: bool = True  # whether the number of BLAS threads matters to it
    share: float = 1.0  # how much of the whole work a call does: its time is divided by this
    own_clock: bool = False  # the answer is the time that a process took by its own clock


@dataclass(frozen=True)
class Case:
    """A question, and the ways to its answer on one input."""

    name: str
    ours: Contender
    peers: tuple[Contender, ...]
    error: Callable[[Any], float]
    unit: str
    bound: float  # an answer of ours that errs by more does not count
    peer_bound: float = np.inf  # a peer's that errs by more means that it was not asked the same question
    by_exactness: bool = False  # peers trade exactness for time: rivals are those at least as exact as our answer
    limits: tuple[Contender, ...] = ()  # what the machine itself would take for what cannot be avoided

    def missing(self) -> list[str]:
        """Name the distributions that are needed and not installed."""
        modules = {module for contender in (self.ours, *self.peers) for module in contender.needs}
        return sorted(DISTRIBUTIONS.get(module, module) for module in modules if find_spec(module) is None)

    def against(self, peer: str) -> Case:
        """Keep the peers of this name alone."""
        return replace(self, peers=tuple(contender for contender in self.peers if contender.name == peer))


def check(case: Case, answer: Any) -> float:
    """Give the error of our answer; a RuntimeError if it is wrong."""
    error = case.error(answer)
    if not error <= case.bound:
        raise RuntimeError(f"{case.name}: the answer errs by {error:.3g} {case.unit}; {case.bound:.3g} is allowed.")
    return error


@cache
def checked(build: Callable[..., Case], *arguments: Any) -> Case:
    """Build a case, warm it up and check its answer; once a process, since asv sets up before every sample."""
    case = build(*arguments)
    check(case, case.ours.call())
    return case


def _off(answer: Any, values: Floats, eps: float) -> float:
    """Largest error of singular values (..., p), in eps·σ₁ of their matrix."""
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
        # One pass over half of what is left of n² numbers for each column: 8n³/6 bytes, where a copy moves 16n².
        Contender("memcpy of what a one-stage reduction reads", lambda: np.copyto(copy, exact), share=12.0 / n),
    )
    return _values_case(f"{n}², {dtype}", matrix, values, peers, limits=limits)


def _torch_values(matrix: NDArray[Any]) -> NDArray[Any]:
    torch: Any = import_module("torch")
    values: NDArray[Any] = torch.linalg.svdvals(torch.from_numpy(matrix)).numpy()
    return values


def leading(n: int, power: float, rank: int, vectors: bool) -> Case:
    """The leading part of one large matrix whose values fall as i^-power: its values, or its factors.

    The peers give vectors either way. The excess is over the best possible error at that rank: of the factors given,
    or of those that hold the energy of the values given.
    """
    matrix, values = inputs.falling(n, power)
    fall = {0.5: "1/√i", 1.0: "1/i"}[power]
    columns = inputs.generator(n, 32).standard_normal((n, 32), dtype=np.float32)
    rows = np.ascontiguousarray(columns.T)
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
                "BLAS's products with eight blocks of 32 columns",
                lambda: (matrix @ columns, rows @ matrix),
                share=1 / 8,
            ),
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
    """Relative excess of an approximation's error over √best; of values alone, of the energy that they leave."""
    if not isinstance(answer, tuple):
        left = _energy(matrix) - float(np.sum(answer**2))
    else:
        B, A = (factor.astype(np.float64) for factor in answer)
        blocks = range(0, len(matrix), 512)
        left = sum(_energy(matrix[i : i + 512] - B[i : i + 512] @ A) for i in blocks)
    # Values that claim more than there is (a negative excess) err as much as values that miss it.
    return float(abs(np.sqrt(max(left, 0.0) / best) - 1.0))


def _energy(matrix: NDArray[Any]) -> float:
    return float(np.sum(np.square(matrix, dtype=np.float64)))


def truncation(count: int, n: int, dtype: str, rank: int) -> Case:
    """The best factors of every matrix of a stack."""
    matrices, values = inputs.stack(count, n, dtype)
    best = np.sum(values[:, rank:] ** 2, axis=-1)

    def error(answer: tuple[NDArray[Any], NDArray[Any]]) -> float:
        residuals = matrices - answer[0] @ answer[1]
        return float(np.max(np.sqrt(np.sum(residuals**2, axis=(-2, -1)) / best) - 1.0))

    ours = Contender("lowrank_core", lambda: _factors_of(truncate(matrices, rank)))
    name = f"{count:,} × {n}², {dtype}, leading {rank}"
    return Case(name, ours, (), error, unit="excess error", bound=1e-6)


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
    R_B, R_A = (found if mode == "r" else found[1] for found in factored)
    return np.linalg.svd(R_B @ np.swapaxes(R_A, -1, -2), compute_uv=False)


def _spectra_of(values: Floats, n: int) -> Spectrum:
    return Spectrum(values, np.sqrt(np.sum(values**2, axis=-1)), (n, n), complete=True)


def sweep(count: int, n: int, rank_count: int) -> Case:
    """Errors of spectra in hand at many ranks under eight scalings: two rules, four alphas."""
    values = inputs.whole_spectra(count, n)
    spectra, ranks = _spectra_of(values, n), np.linspace(1, n, rank_count).astype(np.int64)
    rules, alphas = RULES[:2], np.array([4.0, 8.0, 16.0, 32.0])
    table = np.stack([scaling_rule(rule)(alphas[:, np.newaxis], ranks) for rule in rules])
    both_ways = partial(_by_cumulative_sums, values, ranks, table, both_ways=True)
    reference = both_ways()
    moved = np.zeros((values.size + reference.size + count * rank_count) // 2)
    copy = np.empty_like(moved)
    return Case(
        f"{count:,} × {n:,} values, {rank_count:,} ranks, 8 scalings",
        Contender("lowrank_core", lambda: error_sweep(spectra, ranks, alpha=alphas, rules=rules).errors),
        (
            Contender("numpy, two cumulative sums", both_ways, blas=False),
            Contender("numpy, tail = N² − head", partial(_by_cumulative_sums, values, ranks, table), blas=False),
        ),
        error=lambda answer: _relative(answer, reference),
        unit="eps, relative",
        bound=50.0,
        peer_bound=1e6,
        limits=(Contender("memcpy of as many bytes", lambda: np.copyto(copy, moved), blas=False),),
    )


def _by_cumulative_sums(
    values: Floats, ranks: NDArray[np.int64], table: Floats, *, both_ways: bool = False
) -> NDArray[Any]:
    """Errors (count, *table.shape) from the definition; whole numbers below 2^20 are summed without a rounding."""
    squares = values**2
    heads = np.cumsum(squares, axis=-1)
    total = heads[:, -1:]
    if both_ways:
        padded = np.concatenate([squares, np.zeros((len(squares), 1))], axis=-1)
        tails = np.cumsum(padded[:, ::-1], axis=-1)[:, ::-1][:, ranks]
    else:
        tails = total - heads[:, ranks - 1]
    lead = (1, *(1,) * (table.ndim - 1), -1)
    H, T = ((part / total).reshape(len(values), *lead[1:]) for part in (heads[:, ranks - 1], tails))
    errors: NDArray[Any] = np.sqrt((1.0 - table) ** 2 * H + T)
    return errors


def _relative(answer: Any, reference: Floats) -> float:
    """Largest relative error, in eps; below 1e-6 of the largest entry, in eps of that."""
    scale = np.maximum(reference, 1e-6 * reference.max())
    return float(np.max(np.abs(answer - reference) / scale) / np.finfo(np.float64).eps)


def _the_articles_way(update: Floats, ranks: Sequence[int], rules: Sequence[str]) -> Floats:
    """An SVD and a dense reconstruction for each rule and rank."""
    errors = np.empty((len(rules), len(ranks)))
    for i, rule in enumerate(rules):
        for j, rank in enumerate(ranks):
            U, S, Vt = np.linalg.svd(update, full_matrices=False)
            B, A = U[:, :rank] * S[:rank], Vt[:rank]
            approximation = scaling_rule(rule)(ALPHA, rank) * (B @ A)
            errors[i, j] = np.linalg.norm(update - approximation) / np.linalg.norm(update)
    return errors


def article() -> Case:
    """The article's sweep of one update, from the matrix to its errors."""
    drawn = np.random.RandomState(42)  # The article's own generator, in its own order.
    style_update(64, 64, rng=drawn)
    update = facts_update(64, 64, rng=drawn)
    return Case(
        "the article's facts update, 6 ranks, 2 rules",
        Contender("lowrank_core", lambda: error_sweep(spectrum(update), ARTICLE_RANKS, alpha=ALPHA).errors),
        (Contender("the article's way", lambda: _the_articles_way(update, ARTICLE_RANKS, RULES[:2])),),
        error=lambda answer: float(np.max(np.abs(answer - np.array(ARTICLE_ERRORS)))),
        unit="absolute (6 digits printed)",
        bound=0.51e-6,
        peer_bound=0.51e-6,
        limits=(Contender("one np.linalg.svd, values alone", lambda: np.linalg.svd(update, compute_uv=False)),),
    )


def many_updates(count: int, decompositions: bool) -> Case:
    """Sweep updates of 64 × 64 over all ranks and three rules, against the article's way on a part of them."""
    matrices, values = inputs.stack(count, 64, "float64")
    spectra, ranks = spectrum(matrices), np.arange(1, 65)
    table = np.stack([scaling_rule(rule)(ALPHA, ranks) for rule in RULES])
    reference = _by_cumulative_sums(values, ranks, table, both_ways=True)
    few, part = matrices[:4], slice(7, None, 8)

    def by_article() -> Floats:
        return np.stack([_the_articles_way(update, ranks[part].tolist(), RULES) for update in few])

    def ours() -> Floats:
        held = spectrum(matrices) if decompositions else spectra
        return error_sweep(held, ranks, alpha=ALPHA, rules=RULES).errors

    def error(answer: Floats) -> float:
        wanted = reference if answer.shape == reference.shape else reference[: len(few), :, part]
        return float(np.max(np.abs(answer - wanted)) / np.finfo(np.float64).eps)

    means = "from the updates" if decompositions else "from spectra"
    return Case(
        f"{count:,} × 64², 64 ranks, 3 rules: {means}",
        Contender("lowrank_core", ours),
        (Contender("the article's way, in part", by_article, share=len(few) / (8 * count)),),
        error,
        unit="eps, absolute",
        # Singular values within 640 eps·σ₁, under a γ of 16 at the most.
        bound=1e4,
        peer_bound=1e4,
    )


def learning(ranks: tuple[int, ...], repeats: int, optimizer: str = "sgd", steps: int = 300) -> Case:
    """The article's learning experiment: linspace(3, 0.5, 64), α = 16, two rules."""
    n, seed, rate = 64, 7, 1e-3
    values, rules = np.linspace(3.0, 0.5, n), RULES[:2]
    diagonal = np.diag(values)
    # Adam sees the bases, so it is given some.
    dense = diagonal if optimizer == "sgd" else inputs.in_hadamard_bases(values, inputs.generator(n))
    update = _spectra_of(values, n) if optimizer == "sgd" else dense
    drawn = [stream.standard_normal((max(ranks), n)) for stream in np.random.default_rng(seed).spawn(repeats)]
    descend = {"sgd": _plain_descent, "adam": _plain_adam}[optimizer]

    def ours() -> Floats:
        return learning_sweep(
            update, ranks, alpha=ALPHA, rules=rules, steps=steps, learning_rate=rate,
            optimizer=optimizer, repeats=repeats, rng=seed,
        ).errors  # fmt: skip

    def plain() -> Floats:
        errors = np.empty((len(rules), len(ranks)))
        for i, rule in enumerate(rules):
            for j, rank in enumerate(ranks):
                gamma = float(scaling_rule(rule)(ALPHA, rank))
                ends = [descend(dense, A[:rank] / np.sqrt(n), gamma, rate, steps) for A in drawn]
                errors[i, j] = np.mean(ends)
        return errors

    reference = plain()
    flops = 6.0 * n * n * sum(ranks) * len(rules) * repeats * steps
    square = np.ones((1024, 1024))
    return Case(
        f"{optimizer}, {len(ranks)} ranks × 2 rules × {repeats} repeats, {steps} steps",
        Contender("lowrank_core", ours),
        (Contender("a plain NumPy loop", plain),),
        error=lambda answer: float(np.max(np.abs(answer - reference) / reference)),
        unit="relative",
        bound=1e-10 if optimizer == "sgd" else 1e-6,
        limits=(Contender("dgemm's speed", lambda: square @ square, share=2.0 * 1024**3 / flops),),
    )


def _plain_descent(dense: Floats, A: Floats, gamma: float, rate: float, steps: int) -> float:
    A, B = A.copy(), np.zeros((len(dense), len(A)))
    for _ in range(steps):
        residual = gamma * (B @ A) - dense
        B, A = B - rate * gamma * (residual @ A.T), A - rate * gamma * (B.T @ residual)
    return float(np.linalg.norm(gamma * (B @ A) - dense) / np.linalg.norm(dense))


def _plain_adam(dense: Floats, A: Floats, gamma: float, rate: float, steps: int) -> float:
    factors = [np.zeros((len(dense), len(A))), A.copy()]
    moments = [(np.zeros_like(X), np.zeros_like(X)) for X in factors]
    for step in range(1, steps + 1):
        B, A = factors
        residual = gamma * (B @ A) - dense
        for i, gradient in enumerate((gamma * (residual @ A.T), gamma * (B.T @ residual))):
            mean, square = moments[i]
            mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
            moments[i] = mean, square
            root = np.sqrt(square / (1.0 - 0.999**step))
            factors[i] = factors[i] - rate * (mean / (1.0 - 0.9**step)) / (root + 1e-8)
    B, A = factors
    return float(np.linalg.norm(gamma * (B @ A) - dense) / np.linalg.norm(dense))


def _python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def import_time() -> Case:
    """``import lowrank_core`` by the process's own clock, so that the interpreter's start does not flatter it."""

    def imported(module: str) -> float:
        clock = "from time import perf_counter as now; start = now(); "
        return float(_python(f"{clock}import {module}; print(now() - start)"))

    return Case(
        "import lowrank_core",
        Contender("lowrank_core", lambda: imported("lowrank_core"), own_clock=True),
        (Contender("import numpy", lambda: imported("numpy"), blas=False, own_clock=True),),
        error=lambda answer: 0.0 if answer > 0 else np.inf,
        unit="",
        bound=0.0,
    )


def demo() -> Case:
    """``lowrank demo`` as a process, its kernels' cache warm, against the imports that it cannot do without."""
    verb = "import sys; from lowrank_core.cli.app import main; sys.exit(main(['demo']))"
    return Case(
        "lowrank demo",
        Contender("lowrank_core", lambda: _python(verb), needs=("typer", "rich", "matplotlib")),
        (Contender("import numpy, numba, matplotlib", lambda: _python("import numpy, numba, matplotlib"), blas=False),),
        error=lambda printed: 0.0 if printed == "" or DEMO_FIGURE in printed else np.inf,
        unit="",
        bound=0.0,
        limits=(
            Contender("import numpy, numba, typer, rich", lambda: _python("import numpy, numba, typer, rich.console")),
            Contender("both experiments where all is loaded", lambda: run_article(Settings()), blas=False),
        ),
    )
