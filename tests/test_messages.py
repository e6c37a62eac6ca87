"""What the core says of bad input, to the letter: what was given, what is accepted, what to do."""

import numpy as np
import pytest

from lowrank_core import (
    LowRankUpdate,
    Spectrum,
    allocate_ranks,
    effective_rank,
    equivalent_alpha,
    error_sweep,
    learning_sweep,
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
    variance_captured,
)
from lowrank_core.rounding_noise import NoiseLevel, rounding_noise

OF = Spectrum([4.0, 3.0], 5.0, (10, 2), complete=True)
PART = spectrum(np.diag([4.0, 3.0, 2.0, 1.0]), rank=2)
NONE = spectrum(np.eye(3), rank=0)
LAYERS = {"q": OF}
UPDATE = LowRankUpdate(np.ones((3, 2)), np.ones((2, 4)))
MORE = "ask for more with spectrum(update, rank=...), up to 4, or for all of them."
NORM = (
    "norm does not fit values: it is the Frobenius norm, √Σσ² over all singular values, "
    "so it is at least that of the values given, and equal to it when complete."
)

# fmt: off
MESSAGES = {
    # factors
    "B of shape (3, 2) has rank 2 but A of shape (4, 3) has rank 4; "
    "B is (..., m, r) and A is (..., r, n) with the same r.":
        lambda: LowRankUpdate(np.ones((3, 2)), np.ones((4, 3))),
    "B of shape (7, 3, 2) has rank 2 but A of shape (7, 4, 3) has rank 4; "
    "B is (..., m, r) and A is (..., r, n) with the same r.":
        lambda: LowRankUpdate(np.ones((7, 3, 2)), np.ones((7, 4, 3))),
    "B of shape (0, 2) and A of shape (2, 4) make empty matrices; m and n must be at least 1.":
        lambda: LowRankUpdate(np.ones((0, 2)), np.ones((2, 4))),
    "B of shape (2, 3, 1) and A of shape (2, 1, 0) make empty matrices; m and n must be at least 1.":
        lambda: LowRankUpdate(np.ones((2, 3, 1)), np.ones((2, 1, 0))),
    "the batch axes of B (2,) and A (3,) do not broadcast; give both the same.":
        lambda: LowRankUpdate(np.ones((2, 3, 1)), np.ones((3, 1, 4))),
    "scaling must be finite; got nan.": lambda: LowRankUpdate(np.ones((2, 1)), np.ones((1, 2)), np.nan),
    "x has shape (3,); its last axis must be n = 4.": lambda: UPDATE.apply(np.ones(3)),
    "x has shape (7,); its last axis must be n = 5.":
        lambda: LowRankUpdate(np.ones((6, 3, 2)), np.ones((6, 2, 5))).apply(np.ones(7)),
    # spectra
    "values of shape (3,) and norm of shape () do not make spectra of (2, 5) updates; "
    "values are (..., p) with p at most min(m, n), and norm is (...).":
        lambda: Spectrum([3.0, 2.0, 1.0], 4.0, (2, 5), complete=True),
    "values must be finite, not negative, and descending along the last axis.":
        lambda: Spectrum([4.0, 1.0, 2.0], 9.0, (3, 3), complete=False),
    NORM: lambda: Spectrum([4.0, 3.0], 6.0, (2, 2), complete=True),
    "unsupported dtype int32; accepted are float64, float32, float16, bfloat16.":
        lambda: Spectrum([1.0], 1.0, (1, 1), complete=True, dtype="int32"),
    "one rank is needed, for example the largest; got [1, 2].": lambda: spectrum(np.eye(3), rank=[1, 2]),
    "workers must be at least 1, or None for all cores; got 0.": lambda: spectrum(np.eye(3), workers=0),
    "rank 3 is beyond the 2 leading values of this spectrum; ask for them with spectrum(update, rank=3).":
        lambda: variance_captured(PART, [3, 1]),
    # ranks
    f"a variance of 0.99 needs more than the 2 leading values of this spectrum; {MORE}":
        lambda: rank_for_variance(PART, 0.99),
    f"an error of 0.1 needs more than the 2 leading values of this spectrum; {MORE}":
        lambda: rank_for_error(PART, 0.1),
    f"a ratio of 0.1 is passed by all 2 leading values of this spectrum; {MORE}":
        lambda: rank_for_ratio(PART, 0.1),
    f"the rounding threshold is passed by all 2 leading values of this spectrum; {MORE}":
        lambda: numerical_rank(PART),
    "this spectrum has no values; ask for them with spectrum(update, rank=1) or more.": lambda: stable_rank(NONE),
    "the effective rank needs every singular value, and this spectrum has the leading 2; "
    "ask for all with spectrum(update).": lambda: effective_rank(PART),
    "an estimate of unknown noise needs every singular value, and this spectrum has the leading 2; "
    "ask for all with spectrum(update), or give the noise.": lambda: rank_above_noise(PART),
    "the median singular value is 0, so there is no noise to estimate: this update is exactly of a rank "
    "under half of min(m, n). Count its rank with numerical_rank, or give the noise.":
        lambda: rank_above_noise(spectrum(np.ones((3, 4)))),
    f"a noise of 0.1 is passed by all 2 leading values of this spectrum; {MORE}":
        lambda: rank_above_noise(PART, 0.1),
    "noise must be finite and at least 0; got -1.0. "
    "It is the standard deviation of each entry, 0 where there is none.":
        lambda: rank_above_noise(OF, -1.0),
    # scaling
    "power must be finite; got inf. -1 is alpha/r and -0.5 is alpha/sqrt(r).": lambda: power_rule(np.inf),
    "unknown scaling rule 'lora'; accepted are rslora, standard, unscaled, "
    "or a function of (alpha, rank) such as power_rule(-0.25).": lambda: scaling_rule("lora"),
    "rank 0 has no scaling to keep; ranks of at least 1 are needed.": lambda: equivalent_alpha(16, 0, "standard"),
    "no alpha gives the scaling 2.0 under the rule 'unscaled', which is not proportional to alpha; "
    "choose a rule such as 'standard' or 'rslora'.":
        lambda: equivalent_alpha(16, 8, "standard", to_rule="unscaled"),
    "rules must be a sequence such as ('standard', 'rslora'); got 'standard'.":
        lambda: error_sweep(OF, [1], rules="standard"),
    "rule 'power_rule(3)' gives scalings that are not finite: [inf].":
        lambda: error_sweep(OF, [2], alpha=1.7e308, rules=[power_rule(3)]),
    # sweeps
    "scaling must be finite; got inf.": lambda: reconstruction_error(OF, [1], np.inf),
    "ranks must be one-dimensional, such as [2, 4, 8]; got shape (1, 1).": lambda: error_sweep(OF, [[1]]),
    "alpha must be one-dimensional, such as [2, 4, 8]; got shape (1, 1).": lambda: error_sweep(OF, [1], alpha=[[16.0]]),
    # allocation
    "give either parameters, the budget, or variance, the fraction to capture, and not both; "
    "got parameters=3, variance=0.5.": lambda: allocate_ranks(LAYERS, parameters=3, variance=0.5),
    "unknown objective 'nuclear'; accepted are relative, absolute.":
        lambda: allocate_ranks(LAYERS, variance=0.5, objective="nuclear"),
    "spectra is empty; at least one layer is needed.": lambda: allocate_ranks({}, variance=0.5),
    "layer 'q' has a batch of spectra, of shape (2, 3); give each a name of its own.":
        lambda: allocate_ranks({"q": spectrum(np.ones((2, 3, 4)))}, variance=0.5),
    "max_rank names 'k', which is not among the 1 layers.":
        lambda: allocate_ranks(LAYERS, variance=0.5, max_rank={"k": 3}),
    "max_rank is one whole number for all layers, or a mapping of names to such; got [1, 2].":
        lambda: allocate_ranks(LAYERS, variance=0.5, max_rank=[1, 2]),
    "a budget of 11 parameters is too small for any rank: the cheapest, rank 1 of layer 'q', costs m + n = 12.":
        lambda: allocate_ranks(LAYERS, parameters=11),
    "parameters is one budget for all layers together; got [12, 24].":
        lambda: allocate_ranks(LAYERS, parameters=[12, 24]),
    "variance must lie between 0 and 1; got 1.5. Write 95 % as 0.95.": lambda: allocate_ranks(LAYERS, variance=1.5),
    "parameters must be a whole number of at least 0; got 12.5.": lambda: allocate_ranks(LAYERS, parameters=12.5),
    "max_rank must be a whole number of at least 0; got -1.":
        lambda: allocate_ranks(LAYERS, variance=0.5, max_rank=-1),
    "variance is one fraction for all layers together; got [0.5, 0.6].":
        lambda: allocate_ranks(LAYERS, variance=[0.5, 0.6]),
    "a variance of 0.9 cannot be captured: the largest ranks allowed capture 0.64. "
    "Raise max_rank, pass spectra with more values, or ask for less.":
        lambda: allocate_ranks(LAYERS, variance=0.9, max_rank=1),
    "layer 'q' is given all 2 leading values of its spectrum; ask for more with spectrum(update, rank=...), "
    "or set max_rank to 2 for it.": lambda: allocate_ranks({"q": PART}, parameters=100),
    # storage
    f"the edge 0.25 is passed by all 2 leading values of this spectrum; {MORE}":
        lambda: NoiseLevel(0.1, 0.25).rank(PART),
    "base has shape (2, 3) and tuned (3, 2); two matrices of one shape (m, n) are needed. "
    "Pass the matrices of a stack one by one.": lambda: rounding_noise(np.ones((2, 3)), np.ones((3, 2))),
    # learning
    "unknown optimizer 'lion'; accepted are sgd, adam.": lambda: learning_sweep(OF, [1], optimizer="lion"),
    "ranks must be one-dimensional, such as [2, 4, 8]; got shape ().": lambda: learning_sweep(OF, 1),
    "alpha is one number for the whole sweep; got [1.0].":
        lambda: learning_sweep(OF, [1], alpha=[1.0]),
    "repeats must be at least 1; got 0.": lambda: learning_sweep(OF, [1], repeats=0),
    "steps must be a whole number of at least 0; got -1.": lambda: learning_sweep(OF, [1], steps=-1),
    "repeats must be a whole number of at least 0; got -1.": lambda: learning_sweep(OF, [1], repeats=-1),
    "learning_rate must be finite and positive; got 0.0.": lambda: learning_sweep(OF, [1], learning_rate=0.0),
    "init_variance must be finite and positive; got inf.": lambda: learning_sweep(OF, [1], init_variance=np.inf),
    "Adam is not rotation-invariant: it needs the update itself, not its spectrum.":
        lambda: learning_sweep(OF, [1], optimizer="adam"),
    "learning needs every singular value, and this spectrum has the leading 2; ask for all with spectrum(update).":
        lambda: learning_sweep(PART, [1]),
}
# fmt: on


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: " ".join(message.split()[:6]))
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_a_message_says_what_was_given_what_is_accepted_and_what_to_do(message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message is held below
        MESSAGES[message]()
    assert str(caught.value) == message


def test_a_diverged_run_is_told_in_words():
    message = (
        "gradient descent diverged at learning_rate=100 for some ranks and rules, whose error is "
        "inf; lower the rate or alpha."
    )
    with pytest.warns(RuntimeWarning) as caught:
        learning_sweep(OF, [1], learning_rate=100.0)
    assert [str(warning.message) for warning in caught] == [message]
    assert caught[0].filename == __file__
