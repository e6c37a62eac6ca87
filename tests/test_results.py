"""Results show themselves in one line, as a table and as a figure, are equal by content, and compute as matrices do."""

import importlib
import subprocess
import sys
from dataclasses import fields

import ml_dtypes
import numpy as np
import pytest

from lowrank_core import (
    KroneckerUpdate,
    LowRankUpdate,
    Spectrum,
    allocate_ranks,
    compare,
    effective_rank,
    error_sweep,
    learning_sweep,
    numerical_rank,
    rank_above_noise,
    rank_for_error,
    rank_for_ratio,
    rank_for_variance,
    reconstruction_error,
    spectrum,
    stable_rank,
    style_update,
    variance_captured,
)
from tests.cells import Cells

RNG = np.random.default_rng(0)
B, A = RNG.standard_normal((6, 2)), RNG.standard_normal((2, 5))
UPDATE = LowRankUpdate(B, A, 2.0)
DENSE = 2.0 * B @ A
STACK = spectrum(RNG.standard_normal((3, 4, 4)))
SWEEP = error_sweep(spectrum(style_update(16, 16, rng=0)), [0, 1, 2, 4])
LEARNED = learning_sweep(style_update(16, 16, rng=0), [1, 2], steps=2)
RESULTS = {
    "spectrum": spectrum(UPDATE),
    "spectra": STACK,
    "leading": spectrum(DENSE, rank=2),
    "zero": spectrum(np.zeros((3, 4))),
    "no values": Spectrum(np.empty(0), 1.0, (3, 4), complete=False),
    "factors": UPDATE,
    "stacked factors": LowRankUpdate(np.ones((2, 4, 1)), np.ones((1, 3))),
    "rank 0": LowRankUpdate(np.ones((4, 0)), np.ones((0, 3))),
    "Kronecker": KroneckerUpdate(np.eye(2), UPDATE, scaling=-0.5),
    "sweep": SWEEP,
    "sweeps": error_sweep(STACK, [1, 2, 3], alpha=[8.0, 16.0]),
    "rank 0 alone": error_sweep(spectrum(DENSE), [0]),
    "learned": LEARNED,
    "compared": compare(UPDATE, DENSE),
    "compared stacks": compare(np.stack([DENSE, np.zeros_like(DENSE)]), DENSE),
    "compared spaces": compare(UPDATE, DENSE).rows,
    "allocated": allocate_ranks({"q": spectrum(DENSE), "v": spectrum(np.eye(3))}, parameters=30),
}


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_is_one_short_line(name):
    text = repr(RESULTS[name])
    assert "\n" not in text
    assert len(text) < 120


def test_lines_say_shape_rank_scale_norm_and_dtype():
    norm = np.linalg.norm(DENSE)
    assert repr(UPDATE) == f"<LowRankUpdate 6 × 5: rank 2, γ = 2, norm {norm:.4g}, float64>"
    values = np.linalg.svd(DENSE, compute_uv=False)
    text = f"<Spectrum 6 × 5: 2 values, {values[0]:.4g} to {values[1]:.4g}, norm {norm:.4g}, float64>"
    assert repr(RESULTS["spectrum"]) == text
    assert repr(STACK) == "<Spectrum stack of 3, each 4 × 4: 4 values, float64>"
    assert repr(SWEEP) == "<ErrorSweep standard, rslora: ranks 0 to 4, α = 16>"
    assert repr(RESULTS["sweeps"]) == "<ErrorSweep standard, rslora: ranks 1 to 3, α = 8 to 16, stack of 3>"
    assert repr(LEARNED) == "<LearningSweep standard, rslora: ranks 1 to 2, α = 16, 2 steps>"
    assert repr(LowRankUpdate([[np.nan]], [[1.0]])) == "<LowRankUpdate 1 × 1: rank 1, γ = 1, norm nan, float64>"
    # The norm of so many components would cost more than a line of text is worth.
    assert "norm" not in repr(LowRankUpdate(np.ones((1, 300)), np.ones((300, 1))))


@pytest.mark.parametrize("name", RESULTS)
def test_a_table_has_cells_under_all_its_headings(name):
    headings, *rows = Cells(RESULTS[name]._repr_html_()).rows
    assert all(len(row) == len(headings) for row in rows)
    assert headings
    assert rows or name == "no values"


def test_tables_have_the_figures_of_the_functions():
    table = Cells(SWEEP._repr_html_()).rows
    assert table[0] == ["rank r", "best", "standard", "rslora"]
    for row, rank, best, errors in zip(table[1:], SWEEP.ranks, SWEEP.optimal, SWEEP.errors.T, strict=True):
        assert row == [str(rank), *(f"{error:.4g}" for error in (best, *errors))]
    s = RESULTS["spectrum"]
    for row, rank in zip(Cells(s._repr_html_()).rows[1:], (1, 2), strict=True):
        figures = s.values[rank - 1], variance_captured(s, rank), reconstruction_error(s, rank)
        assert row == [str(rank), *(f"{figure:.4g}" for figure in figures)]
    # Of nothing, every rank captures all.
    assert [row[2:] for row in Cells(RESULTS["zero"]._repr_html_()).rows[1:]] == [["1", "0"]] * 3
    many = spectrum(np.ones((60, 2, 2)))
    assert Cells(many._repr_html_()).rows[-1] == ["… 20 more"]
    # The first value is shown, however many there are.
    long = Spectrum(np.ones(5000), np.sqrt(5000), (5000, 5000), True, "float64")
    assert [row[0] for row in Cells(long._repr_html_()).rows[1:]][::12] == ["1", "5000"]
    named = allocate_ranks({"<b>": spectrum(np.eye(2))}, parameters=4)
    assert Cells(named._repr_html_()).rows[1] == ["<b>", "1"]


@pytest.mark.parametrize("name", RESULTS)
def test_results_are_equal_by_content_alone(name):
    result = RESULTS[name]
    same = type(result)(**{field.name: getattr(result, field.name) for field in fields(result) if field.init})
    assert same == result
    assert all(result != other for key, other in RESULTS.items() if key != name)
    assert result != "a text"


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e5m2])
def test_an_update_with_an_entry_that_is_not_a_number_equals_itself(dtype):
    factor = np.array([[np.nan], [1.0]]).astype(dtype)
    assert LowRankUpdate(factor, factor.T) == LowRankUpdate(factor.copy(), factor.T.copy())


def test_one_number_apart_is_not_equal():
    assert LowRankUpdate(B, np.nextafter(A, 9.0), 2.0) != UPDATE
    assert LowRankUpdate(B, A, 2.5) != UPDATE
    assert LowRankUpdate(B.astype(np.float32), A, 2.0) != UPDATE
    with pytest.raises(TypeError, match="unhashable"):
        hash(UPDATE)


def test_arithmetic_is_that_of_matrices():
    other = LowRankUpdate(RNG.standard_normal((6, 3)), RNG.standard_normal((3, 5)), -1.0)
    X, Y = RNG.standard_normal((5, 4)), RNG.standard_normal((2, 7, 6))
    for found, expected in (
        (UPDATE + other, DENSE + other.to_dense()),
        (UPDATE - other, DENSE - other.to_dense()),
        (3 * UPDATE, 3 * DENSE),
        (UPDATE * np.float32(0.5), 0.5 * DENSE),
        (np.float64(2) * UPDATE, 2 * DENSE),
        (UPDATE / 4, DENSE / 4),
        (-UPDATE, -DENSE),
        (sum([UPDATE, other]), DENSE + other.to_dense()),
        (UPDATE @ LowRankUpdate(X, X.T), DENSE @ X @ X.T),
    ):
        assert isinstance(found, LowRankUpdate)
        np.testing.assert_allclose(found.to_dense(), expected, rtol=1e-12, atol=1e-12)
    assert (UPDATE @ LowRankUpdate(X, X.T)).rank == 4
    np.testing.assert_allclose(UPDATE @ X, DENSE @ X, rtol=1e-12)
    np.testing.assert_allclose(UPDATE @ X[:, 0], DENSE @ X[:, 0], rtol=1e-12)
    np.testing.assert_allclose(Y @ UPDATE, Y @ DENSE, rtol=1e-12)
    np.testing.assert_array_equal((UPDATE * np.array(2.0)).to_dense(), 2 * DENSE)
    np.testing.assert_array_equal((np.array(2) * UPDATE).to_dense(), 2 * DENSE)
    assert (LowRankUpdate(B, A, 0.1) * np.float32(0.5)).scaling == 0.05
    kronecker = RESULTS["Kronecker"]
    for found, factor in ((-kronecker, -1), (2 * kronecker, 2), (kronecker * 3, 3), (kronecker / 2, 0.5)):
        assert isinstance(found, KroneckerUpdate)
        np.testing.assert_allclose(found.to_dense(), factor * kronecker.to_dense())


@pytest.mark.parametrize("batch", [(), (3,), (2, 1)])
@pytest.mark.parametrize("sides", ["dense", "factors"])
def test_kronecker_products_are_multiplied_as_matrices_are(batch, sides):
    L, R = RNG.standard_normal((*batch, 3, 2)), RNG.standard_normal((2, 4))
    right = R if sides == "dense" else LowRankUpdate(R, np.eye(4), 0.5)
    K = KroneckerUpdate(L, right, -2.0)
    dense, (m, n) = K.to_dense(), K.shape[-2:]
    for X in (RNG.standard_normal(n), RNG.standard_normal((n, 5)), RNG.standard_normal((2, 3, n, 5))):
        np.testing.assert_allclose(K @ X, dense @ X, rtol=1e-12, atol=1e-12)
    for X in (RNG.standard_normal(m), RNG.standard_normal((5, m)), RNG.standard_normal((2, 3, 5, m))):
        np.testing.assert_allclose(X @ K, X @ dense, rtol=1e-12, atol=1e-12)
    after = LowRankUpdate(RNG.standard_normal((n, 2)), RNG.standard_normal((2, 7)), 3.0)
    before = LowRankUpdate(RNG.standard_normal((7, 2)), RNG.standard_normal((2, m)), 3.0)
    for product, exact in ((K @ after, dense @ after.to_dense()), (before @ K, before.to_dense() @ dense)):
        assert isinstance(product, LowRankUpdate)
        assert product.rank == 2
        np.testing.assert_allclose(product.to_dense(), exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("update", [UPDATE, KroneckerUpdate(np.ones((6, 1)), np.ones((1, 5)))])
@pytest.mark.parametrize("other", [np.ones((7, 2)), np.ones(7), np.array(1.0), LowRankUpdate(np.ones((7, 1)), [[1.0]])])
def test_shapes_that_do_not_multiply_are_refused_in_words(update, other):
    with pytest.raises(ValueError, match=r"shapes \(6, 5\) and .* cannot be multiplied by @; the columns of the left"):
        update @ other
    with pytest.raises(ValueError, match="cannot be multiplied by @"):
        other @ update


@pytest.mark.parametrize(
    "operation",
    [
        np.asarray,
        np.linalg.norm,
        lambda update: np.ones((6, 5)) + update,
        lambda update: update + np.ones((6, 5)),
        lambda update: np.multiply(np.ones((6, 5)), update),
    ],
)
@pytest.mark.parametrize(
    "update", [UPDATE, KroneckerUpdate(np.ones((6, 1)), np.ones((1, 5)))], ids=["factors", "Kronecker"]
)
def test_no_operation_of_numpy_makes_an_update_dense(operation, update):
    with pytest.raises(TypeError):
        operation(update)


def test_the_refusal_names_the_way_out():
    dense = np.ones((6, 5))
    for update in (UPDATE, KroneckerUpdate(np.ones((6, 1)), np.ones((1, 5)))):
        for operation in (
            np.asarray,
            lambda update: update + dense,
            lambda update: dense + update,
            lambda update: update - dense,
            lambda update: dense - update,
        ):
            with pytest.raises(TypeError, match=r"call \.to_dense\(\) for an array of 6 × 5"):
                operation(update)
    for operation in (lambda: UPDATE + 1, lambda: UPDATE * 1j, lambda: UPDATE * dense, lambda: 1 / UPDATE):
        with pytest.raises(TypeError):
            operation()
    with pytest.raises(ValueError, match="scaling"):
        UPDATE * np.inf


QUESTIONS = {
    "variance_captured": lambda s: variance_captured(s, 1),
    "reconstruction_error": lambda s: reconstruction_error(s, 1),
    "error_sweep": lambda s: error_sweep(s, [1]),
    "rank_for_variance": lambda s: rank_for_variance(s, 0.9),
    "rank_for_error": lambda s: rank_for_error(s, 0.1),
    "rank_for_ratio": lambda s: rank_for_ratio(s, 0.1),
    "rank_above_noise": rank_above_noise,
    "rank_above_noise of a level": lambda s: rank_above_noise(s, 0.1),
    "effective_rank": effective_rank,
    "stable_rank": stable_rank,
    "numerical_rank": numerical_rank,
    "allocate_ranks": lambda s: allocate_ranks({"q": s}, parameters=30),
}


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("given", [DENSE, UPDATE, None], ids=["array", "factors", "nothing"])
def test_what_is_not_a_spectrum_is_told_how_to_become_one(question, given):
    with pytest.raises(
        ValueError, match=rf"is a {type(given).__name__}; a Spectrum is needed\. Pass spectrum\(update\)"
    ):
        QUESTIONS[question](given)


def test_structured_arrays_are_told_which_field():
    with pytest.raises(ValueError, match=r"unsupported dtype .* one of its fields, or .*structured_to_unstructured"):
        spectrum(np.zeros((2, 2), dtype=[("x", "f4"), ("y", "f4")]))


@pytest.fixture(scope="module")
def plt():
    importlib.import_module("matplotlib").use("Agg")
    return importlib.import_module("matplotlib.pyplot")


PLOTTED = [name for name, result in RESULTS.items() if hasattr(result, "plot")]


@pytest.mark.parametrize("sweep", [error_sweep, lambda s, ranks: learning_sweep(s, ranks, steps=1)])
def test_a_sweep_without_ranks_or_of_an_empty_batch_is_shown(sweep, plt):
    no_ranks, no_updates = sweep(spectrum(np.eye(3)), []), sweep(spectrum(np.ones((0, 3, 3))), [1, 2])
    assert len(Cells(no_ranks._repr_html_()).rows) == 1
    assert [row[1:] for row in Cells(no_updates._repr_html_()).rows[1:]] == [["nan"] * 3] * 2
    for drawn in (no_ranks.plot(), no_updates.plot()):
        drawn.figure.canvas.draw()
    plt.close("all")


@pytest.mark.parametrize("name", PLOTTED)
def test_a_figure_is_drawn_in_given_axes_or_in_new_ones(name, plt):
    figure, axes = plt.subplots()
    assert RESULTS[name].plot(axes) is axes
    new = RESULTS[name].plot()
    assert new.figure is not figure
    for drawn in (axes, new):
        drawn.figure.canvas.draw()
        assert drawn.get_title()
        assert drawn.get_xlabel()
    plt.close("all")


def test_figures_draw_the_numbers_themselves(plt):
    axes = SWEEP.plot()
    curves = {line.get_label(): line.get_ydata() for line in axes.lines}
    assert list(curves) == ["best possible", "α/r", "α/√r"]
    # Rank 0 has no place on a logarithmic axis.
    for curve, errors in zip(curves.values(), (SWEEP.optimal, *SWEEP.errors), strict=True):
        np.testing.assert_array_equal(curve, errors[1:])
    s = RESULTS["spectrum"]
    np.testing.assert_array_equal(s.plot().lines[0].get_ydata(), s.values / s.values[0])
    stack = STACK.values / STACK.values[:, :1]
    np.testing.assert_array_equal(STACK.plot().lines[-1].get_ydata(), np.median(stack, axis=0))
    bars = RESULTS["allocated"].plot().patches
    assert [bar.get_width() for bar in bars] == list(RESULTS["allocated"].ranks.values())
    plt.close("all")


def test_without_matplotlib_a_figure_names_what_to_install():
    code = (
        "import sys; sys.modules['matplotlib'] = None; import numpy as np, lowrank_core as lc; "
        "lc.spectrum(np.eye(2)).plot()"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 'ImportError: plots need matplotlib, which is not installed: pip install "lowrank_core[cli]"' in run.stderr
