"""Messages about bad input: each names what was given, what is accepted, and what to do."""

import numpy as np
import pytest

from lowrank_core import (
    KroneckerUpdate,
    LowRankUpdate,
    Spectrum,
    allocate_ranks,
    effective_rank,
    equivalent_alpha,
    error_sweep,
    learning_sweep,
    low_rank_hadamard,
    low_rank_sum,
    low_rank_tucker,
    numerical_rank,
    power_rule,
    rank_above_noise,
    rank_for_error,
    rank_for_ratio,
    rank_for_variance,
    reconstruction_error,
    scaling_rule,
    spectrum,
    stable_rank,
    style_update,
    truncate,
    update_with_spectrum,
    variance_captured,
)
from lowrank_core.rounding_noise import NoiseLevel, rounding_noise

WHOLE = Spectrum([4.0, 3.0], 5.0, (10, 2), complete=True)
PART = spectrum(np.diag([4.0, 3.0, 2.0, 1.0]), rank=2)
EMPTY = spectrum(np.eye(3), rank=0)
LAYERS = {"q": WHOLE}
KRONECKER = KroneckerUpdate(np.eye(2), np.ones((3, 4)))
UPDATE = LowRankUpdate(np.ones((3, 2)), np.ones((2, 4)))
MORE = ["2 leading values", "spectrum(update, rank=...)", "up to 4"]
ALL = ["needs every singular value", "leading 2", "spectrum(update)"]

# fmt: off
MESSAGES = {
    "ranks of factors": (
        ["B of shape (3, 2)", "rank 2", "A of shape (4, 3)", "rank 4", "(..., m, r)", "(..., r, n)"],
        lambda: LowRankUpdate(np.ones((3, 2)), np.ones((4, 3))),
    ),
    "ranks of stacked factors": (
        ["B of shape (7, 3, 2)", "rank 2", "A of shape (7, 4, 3)", "rank 4"],
        lambda: LowRankUpdate(np.ones((7, 3, 2)), np.ones((7, 4, 3))),
    ),
    "no rows": (
        ["B of shape (0, 2)", "A of shape (2, 4)", "empty", "at least 1"],
        lambda: LowRankUpdate(np.ones((0, 2)), np.ones((2, 4))),
    ),
    "no columns": (
        ["B of shape (2, 3, 1)", "A of shape (2, 1, 0)", "empty", "at least 1"],
        lambda: LowRankUpdate(np.ones((2, 3, 1)), np.ones((2, 1, 0))),
    ),
    "batch axes": (
        ["B (2,)", "A (3,)", "do not broadcast", "the same"],
        lambda: LowRankUpdate(np.ones((2, 3, 1)), np.ones((3, 1, 4))),
    ),
    "scaling": (["scaling", "finite", "nan"], lambda: LowRankUpdate(np.ones((2, 1)), np.ones((1, 2)), np.nan)),
    "several scalings": (
        ["scaling is one number", "[1.0, 2.0]"], lambda: LowRankUpdate(np.ones((2, 1)), np.ones((1, 2)), [1.0, 2.0]),
    ),
    "axes of a side": (["left", "(3,)", "(..., m, n)", "one row"], lambda: KroneckerUpdate(np.ones(3), np.eye(2))),
    "nested sides": (
        ["right is <KroneckerUpdate", "an array is accepted", "right.to_dense()"],
        lambda: KroneckerUpdate(np.eye(2), KRONECKER),
    ),
    "batch axes of sides": (
        ["left (2,)", "right (3,)", "do not broadcast"],
        lambda: KroneckerUpdate(np.ones((2, 3, 4)), np.ones((3, 3, 4))),
    ),
    "scaling of sides": (["scaling", "finite", "inf"], lambda: KroneckerUpdate(np.eye(2), np.eye(2), np.inf)),
    "several scalings of sides": (
        ["scaling is one number", "[1.0, 2.0]"], lambda: KroneckerUpdate(np.eye(2), np.eye(2), [1.0, 2.0]),
    ),
    "vectors of sides": (["x", "(7,)", "n·q = 8"], lambda: KRONECKER.apply(np.ones(7))),
    "NaN in a side": (
        ["right at batch index (1,)", "nan", "row 0, column 1"],
        lambda: spectrum(KroneckerUpdate(np.eye(2), [[[1.0, 2.0]], [[1.0, np.nan]]])),
    ),
    "infinity in a factor of a side": (
        ["A of left", "inf", "row 0, column 0"],
        lambda: truncate(KroneckerUpdate(LowRankUpdate([[1.0]], [[np.inf]]), np.eye(2)), 1),
    ),
    "method for sides": (
        ["'krylov'", "KroneckerUpdate", "auto, lapack, direct, gram"],
        lambda: spectrum(KRONECKER, rank=1, method="krylov"),
    ),
    "method for a truncation of sides": (["'fast'", "KroneckerUpdate"], lambda: truncate(KRONECKER, 1, method="fast")),
    "rank of a Kronecker product": (["rank 7", "min(m, n) = 6"], lambda: spectrum(KRONECKER, rank=7)),
    "Kronecker product beyond float64": (
        ["singular value of the update", "float64"],
        lambda: spectrum(KroneckerUpdate([[1e200]], [[1e200]])),
    ),
    "sum of nothing": (["updates is empty", "at least one"], lambda: low_rank_sum([])),
    "sum of an array": (
        ["updates[1]", "ndarray", "LowRankUpdate", "truncate(update, rank)"],
        lambda: low_rank_sum([UPDATE, np.ones((3, 4))]),
    ),
    "shapes of a sum": (
        ["updates[0] (3, 4)", "updates[1] (1, 2)", "one shape"],
        lambda: low_rank_sum([UPDATE, LowRankUpdate([[1.0]], [[1.0, 2.0]])]),
    ),
    "weights of a sum": (["weights", "(3,)", "each of the 2"], lambda: low_rank_sum([UPDATE, UPDATE], [1.0, 2.0, 3.0])),
    "infinite weights": (["weights must be finite", "inf"], lambda: low_rank_sum([UPDATE], [np.inf])),
    "sum beyond float64": (
        ["weighted sum", "float64", "smaller weights"],
        lambda: low_rank_sum([LowRankUpdate([[1e300]], [[1e300]], 1e300)], [1e300]),
    ),
    "batch axes of a sum": (
        ["updates[0] (2,)", "updates[1] (3,)", "do not broadcast"],
        lambda: low_rank_sum([LowRankUpdate(np.ones((k, 3, 1)), np.ones((1, 4))) for k in (2, 3)]),
    ),
    "NaN in a term": (
        ["B of second", "nan", "row 0"],
        lambda: low_rank_hadamard(UPDATE, LowRankUpdate(np.full((3, 1), np.nan), np.ones((1, 4)))),
    ),
    "Kronecker product as a term": (
        ["first", "KroneckerUpdate", "truncate"], lambda: low_rank_hadamard(KRONECKER, UPDATE),
    ),
    "Hadamard product beyond float64": (
        ["Hadamard product", "float64", "power of two"],
        lambda: low_rank_hadamard(*[LowRankUpdate([[1e300]], [[1e300]], 1e100)] * 2),
    ),
    "axes of a core": (
        ["mid", "(2, 3, 5, 5)", "(..., r, s, k)", "r = 2", "s = 3", "mid.reshape(2, 3, -1)"],
        lambda: low_rank_tucker(np.ones((4, 2)), np.ones((2, 3, 5, 5)), np.ones((3, 6))),
    ),
    "NaN in a core": (
        ["mid", "nan"], lambda: low_rank_tucker(np.ones((4, 1)), np.full((1, 1, 2), np.nan), np.ones((1, 6))),
    ),
    "batch axes of a core": (
        ["up (2,)", "mid (3,)", "down ()", "do not broadcast"],
        lambda: low_rank_tucker(np.ones((2, 4, 1)), np.ones((3, 1, 1, 2)), np.ones((1, 6))),
    ),
    "vectors": (["x", "(3,)", "n = 4"], lambda: UPDATE.apply(np.ones(3))),
    "stacked vectors": (
        ["x", "(7,)", "n = 5"], lambda: LowRankUpdate(np.ones((6, 3, 2)), np.ones((6, 2, 5))).apply(np.ones(7)),
    ),
    "complex vectors": (["x", "complex128", "float64", ".real"], lambda: UPDATE.apply(1j * np.ones(4))),
    "too many values": (
        ["(3,)", "()", "(2, 5)", "(..., p)", "min(m, n)"],
        lambda: Spectrum([3.0, 2.0, 1.0], 4.0, (2, 5), complete=True),
    ),
    "ascending values": (
        ["values", "finite", "not negative", "descending"],
        lambda: Spectrum([4.0, 1.0, 2.0], 9.0, (3, 3), complete=False),
    ),
    "norm": (
        ["norm does not fit", "√Σσ²", "at least", "equal"], lambda: Spectrum([4.0, 3.0], 6.0, (2, 2), complete=True),
    ),
    "dtype": (
        ["unsupported dtype int32", "float64, float32, float16, bfloat16"],
        lambda: Spectrum([1.0], 1.0, (1, 1), complete=True, dtype="int32"),
    ),
    "several ranks": (["one rank", "[1, 2]"], lambda: spectrum(np.eye(3), rank=[1, 2])),
    "workers": (["workers", "at least 1", "None", "got 0"], lambda: spectrum(np.eye(3), workers=0)),
    "unknown values": (
        ["rank 3", "2 leading values", "spectrum(update, rank=3)"], lambda: variance_captured(PART, [3, 1]),
    ),
    "variance of a part": (["variance of 0.99", *MORE], lambda: rank_for_variance(PART, 0.99)),
    "error of a part": (["error of 0.1", *MORE], lambda: rank_for_error(PART, 0.1)),
    "ratio of a part": (["ratio of 0.1", *MORE], lambda: rank_for_ratio(PART, 0.1)),
    "rounding of a part": (["rounding threshold", *MORE], lambda: numerical_rank(PART)),
    "noise of a part": (["noise of 0.1", *MORE], lambda: rank_above_noise(PART, 0.1)),
    "edge of a part": (["edge 0.25", *MORE], lambda: NoiseLevel(0.1, 0.25).rank(PART)),
    "no values": (["no values", "spectrum(update, rank=1)"], lambda: stable_rank(EMPTY)),
    "effective rank of a part": (["effective rank", *ALL], lambda: effective_rank(PART)),
    "unknown noise of a part": (["unknown noise", *ALL, "give the noise"], lambda: rank_above_noise(PART)),
    "learning of a part": (["learning", *ALL], lambda: learning_sweep(PART, [1])),
    "median of 0": (
        ["median singular value is 0", "half of min(m, n)", "numerical_rank", "give the noise"],
        lambda: rank_above_noise(spectrum(np.ones((3, 4)))),
    ),
    "negative noise": (
        ["noise", "finite and at least 0", "-1.0", "standard deviation"], lambda: rank_above_noise(WHOLE, -1.0),
    ),
    "several noises": (
        ["noise is one standard deviation", "[0.1, 0.2]"], lambda: style_update(4, 4, noise=[0.1, 0.2], rng=0),
    ),
    "negative values": (
        ["values", "finite and not negative", "singular values"], lambda: update_with_spectrum([-1.0], (2, 2), rng=0),
    ),
    "sizes": (["at least one row and one column", "0 × 4"], lambda: style_update(0, 4, rng=0)),
    "power": (["power must be finite", "inf", "alpha/r"], lambda: power_rule(np.inf)),
    "rule": (
        ["'lora'", "rslora, standard, unscaled", "(alpha, rank)", "power_rule(-0.25)"], lambda: scaling_rule("lora"),
    ),
    "rank 0": (["rank 0", "at least 1"], lambda: equivalent_alpha(16, 0, "standard")),
    "no equivalent": (
        ["scaling 2.0", "'unscaled'", "not proportional to alpha", "'standard'"],
        lambda: equivalent_alpha(16, 8, "standard", to_rule="unscaled"),
    ),
    "rules": (["sequence", "('standard', 'rslora')", "'standard'"], lambda: error_sweep(WHOLE, [1], rules="standard")),
    "infinite scalings": (
        ["'power_rule(3)'", "not finite", "inf"],
        lambda: error_sweep(WHOLE, [2], alpha=1.7e308, rules=[power_rule(3)]),
    ),
    "infinite scaling": (["scaling must be finite", "inf"], lambda: reconstruction_error(WHOLE, [1], np.inf)),
    "axes of ranks": (
        ["ranks must be one-dimensional", "[2, 4, 8]", "(1, 1)"], lambda: error_sweep(WHOLE, [[1]]),
    ),
    "axes of alpha": (
        ["alpha must be one-dimensional", "(1, 1)"], lambda: error_sweep(WHOLE, [1], alpha=[[16.0]]),
    ),
    "budget and variance": (
        ["parameters", "variance", "not both", "parameters=3, variance=0.5"],
        lambda: allocate_ranks(LAYERS, parameters=3, variance=0.5),
    ),
    "objective": (
        ["objective 'nuclear'", "relative, absolute"],
        lambda: allocate_ranks(LAYERS, variance=0.5, objective="nuclear"),
    ),
    "no layers": (["spectra is empty", "at least one"], lambda: allocate_ranks({}, variance=0.5)),
    "batched layer": (
        ["'q'", "batch", "(2, 3)", "name of its own"],
        lambda: allocate_ranks({"q": spectrum(np.ones((2, 3, 4)))}, variance=0.5),
    ),
    "unknown layer": (
        ["max_rank", "'k'", "1 layers"], lambda: allocate_ranks(LAYERS, variance=0.5, max_rank={"k": 3}),
    ),
    "several max_ranks": (
        ["max_rank", "one whole number", "mapping", "[1, 2]"],
        lambda: allocate_ranks(LAYERS, variance=0.5, max_rank=[1, 2]),
    ),
    "negative max_rank": (
        ["max_rank", "whole number of at least 0", "-1"], lambda: allocate_ranks(LAYERS, variance=0.5, max_rank=-1),
    ),
    "small budget": (
        ["budget of 11", "rank 1 of layer 'q'", "m + n = 12"], lambda: allocate_ranks(LAYERS, parameters=11),
    ),
    "several budgets": (["one budget", "[12, 24]"], lambda: allocate_ranks(LAYERS, parameters=[12, 24])),
    "part of a parameter": (["parameters", "whole number", "12.5"], lambda: allocate_ranks(LAYERS, parameters=12.5)),
    "percents": (["variance", "between 0 and 1", "1.5", "0.95"], lambda: allocate_ranks(LAYERS, variance=1.5)),
    "several variances": (["one fraction", "[0.5, 0.6]"], lambda: allocate_ranks(LAYERS, variance=[0.5, 0.6])),
    "large variance": (
        ["variance of 0.9", "capture 0.64", "max_rank", "more values"],
        lambda: allocate_ranks(LAYERS, variance=0.9, max_rank=1),
    ),
    "layer with few values": (
        ["'q'", "all 2 leading values", "spectrum(update, rank=...)", "max_rank to 2"],
        lambda: allocate_ranks({"q": PART}, parameters=100),
    ),
    "pair of shapes": (
        ["base", "(2, 3)", "tuned", "(3, 2)", "one shape", "one by one"],
        lambda: rounding_noise(np.ones((2, 3)), np.ones((3, 2))),
    ),
    "optimizer": (["optimizer 'lion'", "sgd, adam"], lambda: learning_sweep(WHOLE, [1], optimizer="lion")),
    "one rank for a sweep": (["ranks must be one-dimensional", "()"], lambda: learning_sweep(WHOLE, 1)),
    "several alphas": (["alpha is one number", "[1.0]"], lambda: learning_sweep(WHOLE, [1], alpha=[1.0])),
    "no repeats": (["repeats", "at least 1", "got 0"], lambda: learning_sweep(WHOLE, [1], repeats=0)),
    "negative steps": (["steps", "at least 0", "-1"], lambda: learning_sweep(WHOLE, [1], steps=-1)),
    "negative repeats": (["repeats", "at least 0", "-1"], lambda: learning_sweep(WHOLE, [1], repeats=-1)),
    "learning rate": (
        ["learning_rate", "finite and positive", "0.0"], lambda: learning_sweep(WHOLE, [1], learning_rate=0.0),
    ),
    "variance of A": (
        ["init_variance", "finite and positive", "inf"], lambda: learning_sweep(WHOLE, [1], init_variance=np.inf),
    ),
    "Adam": (
        ["Adam", "not rotation-invariant", "the update itself"],
        lambda: learning_sweep(WHOLE, [1], optimizer="adam"),
    ),
}
# fmt: on


@pytest.mark.parametrize(("facts", "call"), MESSAGES.values(), ids=MESSAGES)
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_a_message_names_what_was_given_what_is_accepted_and_what_to_do(facts, call):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - each fact is looked for below
        call()
    message = str(caught.value)
    assert [fact for fact in facts if fact not in message] == []
    assert message.endswith(".")


def test_a_diverged_run_warns_with_the_rate_where_it_was_called():
    with pytest.warns(RuntimeWarning, match=r"diverged at learning_rate=100.*inf.*lower") as caught:
        learning_sweep(WHOLE, [1], learning_rate=100.0)
    assert [warning.filename for warning in caught] == [__file__]
