"""Cases of questions about spectra, from the error sweep to the demo, and of the package as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import inputs
from benchmarks.cases import Case, Contender, Floats
from lowrank_core import (
    LowRankUpdate,
    Spectrum,
    error_sweep,
    facts_update,
    learning_sweep,
    reconstruction_error,
    scaling_rule,
    spectrum,
    style_update,
)
from lowrank_core.cli.demo.experiments import Settings
from lowrank_core.cli.demo.experiments import run as run_article

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
    """Return errors (count, *table.shape) from the definition; whole numbers below 2^20 are summed exactly."""
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
    """Return the largest relative error, in eps; below 1e-6 of the largest entry, in eps of 1e-6 of that."""
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


def lone_call(question: str) -> Case:
    """Calls with next to no arithmetic, whose time is that of the calls and checks around it."""
    values = np.array([4.0, 2.0])
    update, in_hand = np.diag(values), _spectra_of(values, 2)
    product = LowRankUpdate(update.astype(np.float32), np.eye(2, dtype=np.float32))
    ours, exact = {
        "spectrum": (lambda: spectrum(update).values, values),
        "factors": (lambda: spectrum(product).values, values),
        "error_sweep": (lambda: error_sweep(in_hand, [1], alpha=1.0).errors, np.sqrt([[0.2], [0.2]])),
        "reconstruction_error": (lambda: reconstruction_error(in_hand), np.sqrt([1.0, 0.2, 0.0])),
    }[question]
    return Case(
        f"{question}, one of 2²",
        Contender("lowrank_core", ours),
        (),
        error=lambda answer: float(np.max(np.abs(answer - exact)) / np.finfo(np.float64).eps),
        unit="eps, absolute",
        bound=20.0,
    )


def many_updates(count: int, decompositions: bool) -> Case:
    """A sweep of updates of 64 × 64 over all ranks and three rules, against the article's way on a part of them."""
    matrices, values = inputs.stack(count, 64, "float64")
    spectra, ranks = spectrum(matrices), np.arange(1, 65)
    table = np.stack([scaling_rule(rule)(ALPHA, ranks) for rule in RULES])
    reference = _by_cumulative_sums(values, ranks, table, both_ways=True)
    few, part = matrices[:4], slice(7, None, 8)

    def by_article() -> Floats:
        return np.stack([_the_articles_way(update, ranks[part].tolist(), RULES) for update in few])

    def ours() -> Floats:
        decomposed = spectrum(matrices) if decompositions else spectra
        return error_sweep(decomposed, ranks, alpha=ALPHA, rules=RULES).errors

    def error(answer: Floats) -> float:
        wanted = reference if answer.shape == reference.shape else reference[: len(few), :, part]
        return float(np.max(np.abs(answer - wanted)) / np.finfo(np.float64).eps)

    means = "from the updates" if decompositions else "from spectra"
    return Case(
        f"{count:,} × 64², 64 ranks, 3 rules: {means}",
        Contender("lowrank_core", ours),
        (Contender("the article's way, in part", by_article, fraction=len(few) / (8 * count)),),
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
    # The result of Adam depends on the bases.
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
        limits=(Contender("dgemm's speed", lambda: square @ square, fraction=2.0 * 1024**3 / flops),),
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
    # With bytecode, as an installed package has it.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=env).stdout


def import_time() -> Case:
    """``import lowrank_core`` by the process's own clock, without the interpreter's start, which both sides have."""

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
    """``lowrank demo`` as a process, its kernels' cache warm, against the imports that it needs."""
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
            Contender("import numba, and its first call", lambda: _python("import numba; numba.njit(lambda x: x)(1)")),
            Contender("both experiments where all is loaded", lambda: run_article(Settings()), blas=False),
        ),
    )
