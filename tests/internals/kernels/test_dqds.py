"""dqds on bidiagonal matrices, as plain Python: the values, and how many steps they take."""

import numpy as np
import pytest

from lowrank_core._linalg.kernels import dqds, gram, simd, small
from tests.compiled import plain

N = 24
EPS = 2.0**-52
KERNELS = [name for name, value in vars(dqds).items() if callable(value) and value.__module__ == dqds.__name__]


def drawn(seed):
    return np.random.default_rng(seed).random((2, N))


def changed(squares, side, at, value):
    squares[side][at] = value
    return squares


# A change of the algorithm may take a few steps more.
SLACK = 1.1
# Squares of the diagonal and of the entries above it, and the steps that they take.
BIDIAGONALS = {
    "drawn": (drawn(0), 120),
    "drawn, larger above": (drawn(1) * [[1.0], [9.0]], 140),
    "drawn, small above": (drawn(2) * [[1.0], [1e-3]], 211),
    "equal": (np.ones((2, N)), 99),
    "nearly diagonal": (np.array([1 + 1e-12 * np.arange(N), np.full(N, 1e-14)]), 119),
    "falling": (np.array([1.0, 0.5])[:, np.newaxis] * 0.25 ** np.arange(N), 50),
    "rising": (np.array([1.0, 0.5])[:, np.newaxis] * 4.0 ** np.arange(N), 77),
    "Wilkinson's": (np.array([np.abs(np.arange(N) - N / 2) + 0.1, np.ones(N)]), 149),
    "nearly split": (changed(drawn(3), 1, N // 2, 1e-20), 179),
    "split": (changed(drawn(4), 1, N // 3, 0.0), 101),
    "nearly singular": (changed(drawn(5), 0, N - 1, 1e-25), 115),
    "singular": (changed(drawn(6), 0, N // 2, 0.0), 115),
    "repeated": (np.array([1.0 + np.arange(N) % 3, np.where(np.arange(N) % 3 == 2, 1e-9, 0.3)]), 116),
}


@pytest.fixture
def steps(monkeypatch):
    """Make the kernels plain, and count the steps."""
    for name in KERNELS:
        monkeypatch.setattr(dqds, name, getattr(getattr(dqds, name), "py_func", getattr(dqds, name)))
    counted, step = [], dqds._step
    monkeypatch.setattr(dqds, "_step", lambda *given: counted.append(None) or step(*given))
    return counted


def converged(squares, blur=0.0):
    """Singular values of up to eight bidiagonal matrices, one a lane."""
    size = (N + 1) * simd.WIDTH
    q, e = np.zeros(size), np.zeros(size)
    for lane, (diagonal, above) in enumerate(squares):
        q[lane : N * simd.WIDTH : simd.WIDTH] = diagonal
        e[lane : (N - 1) * simd.WIDTH : simd.WIDTH] = above[:-1]
    state = np.empty(dqds.STATE)
    with np.errstate(all="ignore"):
        dqds.dqds(N, q, e, np.empty(size), np.empty(size), np.empty(size), state, blur)
    assert state[dqds.N0 : dqds.N0 + simd.WIDTH].tolist() == [-1] * simd.WIDTH
    values = np.empty((len(squares), N))
    assert dqds.write_values(0, q, state, values) == 0
    return values


def exact(squares):
    diagonal, above = np.sqrt(squares)
    return np.linalg.svd(np.diag(diagonal) + np.diag(above[:-1], 1), compute_uv=False)


@pytest.mark.parametrize("kind", BIDIAGONALS)
def test_values_are_lapacks_in_as_many_steps(kind, steps):
    squares, usual = BIDIAGONALS[kind]
    values, right = converged([squares])[0], exact(squares)
    assert np.all(np.diff(values) <= 0)
    assert np.all(np.abs(values - right) <= 4 * N * EPS * right[0])
    assert len(steps) <= SLACK * usual


def test_lanes_take_their_own_steps(steps):
    chosen = [squares for squares, _ in BIDIAGONALS.values()][:8]
    together = converged(chosen)
    count = len(steps)
    alone = []
    for squares, values in zip(chosen, together, strict=True):
        steps.clear()
        assert np.array_equal(converged([squares])[0], values)
        alone.append(len(steps))
    assert count == max(alone)


# The steps where squares are needed to an ulp of the largest only, as in a Gram matrix.
BLURRED_STEPS = {
    "drawn": 120,
    "drawn, larger above": 140,
    "drawn, small above": 211,
    "equal": 99,
    "nearly diagonal": 119,
    "falling": 51,
    "rising": 76,
    "Wilkinson's": 149,
    "nearly split": 179,
    "split": 101,
    "nearly singular": 111,
    "singular": 115,
    "repeated": 116,
}


@pytest.mark.parametrize("kind", BIDIAGONALS)
def test_blurred_squares_are_those_of_the_values(kind, steps):
    squares, _ = BIDIAGONALS[kind]
    blurred, right = converged([squares], 2.0**-4)[0] ** 2, exact(squares) ** 2
    assert np.all(np.abs(blurred - right) <= (2 * 2.0**-51 * 2.0**-2 + 4 * N * EPS) * right[0])
    assert len(steps) <= SLACK * BLURRED_STEPS[kind]


def stepped(q, e, start, end, shift, left_out=()):
    """The step on one block by its formulas, and what it tells of the block: least d, last d, both weights, its end."""
    q, e, d, least = q.copy(), e.copy(), q[start] - shift, np.inf
    for k in range(start, end):
        least = min(least, d) if least >= 0 else least
        ratio = q[k + 1] / (d + e[k])
        q[k], e[k], d = d + e[k], e[k] * ratio, d * ratio - shift
    q[end] = d
    e[list(left_out)] = 0.0
    weights = []
    for last in (end, end - 1):
        x = np.ones(last - start + 1)
        for i in range(last - start - 1, -1, -1):
            x[i] = x[i + 1] * np.sqrt(abs(e[start + i] / q[start + i]))
        weights.append(np.sum(x[:-1] ** 2))
    return q, e, [least, d, *weights, q[end - 1], e[end - 1]]


# Blocks of the lanes, of which the last two have none; one whose first d is 0, and one that begins with a negative d.
BLOCKS = [(0, N - 1), (3, 9), (0, 1), (9, N - 1), (5, 20), (2, 3), (N, -1), (N, -1)]
SHIFTS = [0.0, 1e-3, 1e-3, 0.0, "first", 2.0, 0.5, 0.0]


@pytest.mark.parametrize("spread_out", [False, True])
def test_a_step_is_its_formulas_in_every_lane(steps, spread_out):
    width, rng = simd.WIDTH, np.random.default_rng(7)
    q, e = rng.random((2, N + 1, width)) + 0.1
    blocks = BLOCKS if spread_out else [(0, N - 1)] * 8
    shifts = [
        q[start, lane] if shift == "first" else shift
        for (start, _), shift, lane in zip(blocks, SHIFTS, range(8), strict=True)
    ]
    start, end = np.array(blocks, dtype=float).T
    # Between the latest start and the earliest end but one, all lanes are in their blocks.
    first, latest, earliest, last = 0, max(start), min(end) - 1, N - 1
    new_q, new_e, q_before, e_before, left = (x.ravel().copy() for x in (q, e, q, e, np.zeros((N, width))))
    none = np.full(width, -np.inf)
    told = dqds._step(
        (first, latest, earliest, last),
        (new_q, new_e, q_before, e_before, left),
        (start, end, np.array(shifts), np.zeros(width), none, none),
    )
    new_q, new_e = new_q.reshape(-1, width), new_e.reshape(-1, width)
    assert np.array_equal(q_before.reshape(-1, width), q)
    assert np.array_equal(e_before.reshape(-1, width), e)
    for lane, (start, end) in enumerate(blocks):
        if end < 0:
            assert np.array_equal(new_q[:, lane], q[:, lane])
            assert np.array_equal(new_e[:, lane], e[:, lane])
            continue
        right_q, right_e, right = stepped(q[:, lane], e[:, lane], start, end, shifts[lane])
        assert np.allclose(new_q[:, lane], right_q, rtol=1e-12, atol=0)
        assert np.allclose(new_e[:, lane], right_e, rtol=1e-12, atol=0)
        split, *found = (each[lane] for each in told)
        assert split == start
        if found[0] >= 0 <= found[1]:
            assert np.allclose(found, right, rtol=1e-12, atol=0)
        else:
            # The step fails: of it no more is used than by how much.
            assert np.allclose(found[:2], right[:2], rtol=1e-12, atol=0)
    assert not left.any()


@pytest.mark.parametrize("idle", [False, True])
def test_a_step_leaves_out_what_is_negligible_but_for_the_last(steps, idle):
    width, rng = simd.WIDTH, np.random.default_rng(8)
    q, e = rng.random((2, N + 1, width)) + 0.1
    e[[2, 7, N - 2]] = 1e-33
    start, end = np.zeros(width), np.full(width, N - 1.0)
    if idle:
        start[7], end[7] = N, -1
    new_q, new_e, left = (x.ravel().copy() for x in (q, e, np.zeros((N, width))))
    allowed, base, shift = np.full(width, 1e-30), np.full(width, 0.25), np.full(width, 1e-3)
    allowed[6] = 0.0
    split, *told = dqds._step(
        (0, max(start), min(end) - 1, N - 1),
        (new_q, new_e, new_q.copy(), new_e.copy(), left),
        (start, end, shift, base, allowed, np.full(width, -np.inf)),
    )
    for lane in range(7 if idle else 8):
        apart = [] if lane == 6 else [2, 7]
        right_q, right_e, right = stepped(q[:, lane], e[:, lane], 0, N - 1, 1e-3, apart)
        assert np.allclose(new_q.reshape(-1, width)[:, lane], right_q, rtol=1e-12, atol=0)
        assert np.allclose(new_e.reshape(-1, width)[:, lane], right_e, rtol=1e-12, atol=0)
        assert np.allclose([each[lane] for each in told], right, rtol=1e-12, atol=0)
        assert split[lane] == (apart[-1] + 1 if apart else 0)
        # Where a part ends, what has been taken off it so far.
        assert left.reshape(-1, width)[apart, lane].tolist() == [0.25 + 1e-3] * len(apart)
        assert np.count_nonzero(left.reshape(-1, width)[:, lane]) == len(apart)


def test_what_is_negligible(steps):
    e = np.array([1e-30, 2e-30, 1e-17, 1e-17, 2e-16, 1e-3, 1e-20, 0.0])
    above = np.array([1.0, 1.0, 1.0, 1e-20, 1.0, 1e-29, 1e-13, 0.0])
    # √e within the tolerance; or the change of a σ², of e times the larger of e and what is above, within another.
    found = dqds._negligible(e, above, np.full(8, 1e-30), np.full(8, 1e-32))
    assert found.tolist() == [True, False, False, True, False, False, True, True]
    assert dqds._negligible(e, above, np.full(8, 1e-30), np.full(8, -1.0)).tolist() == [True] + [False] * 6 + [True]
    # Ties are negligible.
    assert dqds._negligible(np.full(8, 2.0**-9), np.full(8, 2.0**-9), np.zeros(8), np.full(8, 2.0**-18)).all()


def test_shifts_that_are_tried_after_one_that_went_negative(steps):
    tries = np.array([0.0, 1.0, 2.0, 3.0, 0.0, 0.0, 0.0, 0.0])
    least = np.array([-0.125, -0.0625, -0.0625, -0.0625, -1.0, 0.5, 0.0, 0.5])
    bottom = np.array([0.5, 0.5, 0.5, 0.5, 0.5, -0.25, -0.25, -1.0])
    late = 0.75 * (1 - 2.0**-50)
    # Twice as far below as it went, then eight times, then a quarter, then none; never under a quarter before; and
    # where the last entry alone went negative, just under where it would be zero.
    right = [0.75, 0.5, 0.25, 0.0, 0.25, late, late, 0.25]
    assert dqds._smaller_shift(np.ones(8), tries, least, bottom).tolist() == right
    assert dqds._smaller_shift(np.ones(8), np.ones(8), np.zeros(8), np.full(8, -0.0625)).tolist() == [0.5] * 8


def shift_by_its_formulas(gone, least, bottom, weight, weight_above, above, trust, allowed, loose):
    rho_above = above / (1 + weight_above)
    w, rho = (weight_above, rho_above) if gone else (weight, bottom / (1 + weight))
    lowest = least if gone else min(least, bottom)
    shift = rho * (1 - np.sqrt(w)) if w < 0.9 else 0.0
    gap = rho_above * (1 - np.sqrt(weight_above)) - rho
    if not gone and weight_above < 0.9 and gap > 0:
        shift = max(shift, rho - rho**2 * w / gap)
    guessed = lowest < shift or shift <= rho / 4
    if guessed:
        shift = trust * lowest
    found = min(rho, lowest) <= allowed or min(rho, lowest) ** 2 <= loose
    return (0.0 if found else shift), guessed


def test_the_next_shift_is_its_formulas(steps):
    rng = np.random.default_rng(9)
    refined = {"bottom": 1.0, "least": 5.0, "weight": 0.1, "weight_above": 0.9, "above": 100.0}
    ties = [
        refined,  # where the residual above tells just nothing
        {"bottom": 2.0, "least": 2.0**-10, "weight": 0.25, "allowed": 2.0**-10},
        {"bottom": 2.0, "least": 2.0**-10, "weight": 0.25, "loose": 2.0**-20},
    ]
    told = []
    for case in range(100):
        given = {
            "gone": rng.random(8) < 0.3, "least": rng.random(8), "bottom": rng.random(8),
            "weight": 2 * rng.random(8) ** 3, "weight_above": 2 * rng.random(8) ** 3,
            "above": 9 * rng.random(8), "trust": rng.random(8),
            "allowed": np.where(rng.random(8) < 0.1, 0.1, 0.0), "loose": np.where(rng.random(8) < 0.1, 0.1, 0.0),
        }  # fmt: skip
        for lane, tie in enumerate(ties) if case == 0 else ():
            for name, value in ({"gone": False, "allowed": 0.0, "loose": 0.0} | tie).items():
                given[name][lane] = value
        with np.errstate(all="ignore"):
            shifts, guessed = dqds._next_shift(*given.values())
        right = [shift_by_its_formulas(*lane) for lane in zip(*given.values(), strict=True)]
        assert np.allclose(shifts, [shift for shift, _ in right], rtol=1e-13, atol=0)
        assert guessed.tolist() == [bool(guess) for _, guess in right]
        told += right
    # All that can be chosen has been: none, a guess, and a bound.
    assert {(shift > 0, bool(guess)) for shift, guess in told} == {
        (False, False),
        (False, True),
        (True, False),
        (True, True),
    }


@pytest.mark.parametrize("kind", BIDIAGONALS)
def test_values_and_steps_do_not_depend_on_size(kind, steps):
    squares, _ = BIDIAGONALS[kind]
    unscaled = converged([squares])
    count = len(steps)
    for power in (-200, 200):
        steps.clear()
        assert np.array_equal(converged([np.ldexp(squares, 2 * power)]), np.ldexp(unscaled, power))
        assert len(steps) == count


def test_a_shift_far_too_large_ends_at_none(steps, monkeypatch):
    tried, step, chosen = [], dqds._step, dqds._next_shift

    def watched(*given):
        tried.append(float(given[2][2][0]))
        return step(*given)

    def far(*given):
        shift, guessed = chosen(*given)
        return (np.full(8, 50.0) if len(tried) == 1 else shift), guessed

    monkeypatch.setattr(dqds, "_step", watched)
    monkeypatch.setattr(dqds, "_next_shift", far)
    squares, _ = BIDIAGONALS["equal"]
    values, right = converged([squares])[0], exact(squares)
    assert tried[:6] == [0.0, 50.0, 12.5, 3.125, 0.78125, 0.0]
    assert np.all(np.abs(values - right) <= 4 * N * EPS * right[0])


STOPPED = [0, 2, 8, 10, 16, 18]


def stops(*args):
    """Converge, and say that the first lane and the third have not."""
    dqds.dqds(*args)
    args[6][dqds.N0 : dqds.N0 + simd.WIDTH] = [0.0, -1.0, 3.0, -1.0, -1.0, -1.0, -1.0, -1.0]


def test_small_matrices_that_did_not_converge_are_nan_and_counted(monkeypatch):
    monkeypatch.setattr(small, "dqds", stops)
    given, exponents, values = (
        np.random.default_rng(6).standard_normal((19, 5, 4)),
        np.empty(19, np.int64),
        np.empty((19, 4)),
    )
    assert plain(small.small_values)(given, values, exponents) == len(STOPPED)
    assert_nan_where_stopped(np.ldexp(values, exponents[:, np.newaxis]), np.linalg.svd(given, compute_uv=False))


def test_tridiagonal_matrices_that_did_not_converge_are_nan_and_counted(monkeypatch):
    monkeypatch.setattr(gram, "dqds", stops)
    diagonals, values = np.random.default_rng(7).uniform(2, 3, (19, 5)), np.empty((19, 5))
    squares = np.tile([0.25, 0.25, 0.25, 0.25, 0.0], (19, 1))
    assert plain(gram.tridiagonal_values)(diagonals, squares, values) == len(STOPPED)
    beside = np.diag(np.full(4, 0.5), 1)
    matrices = diagonals[:, np.newaxis] * np.eye(5) + beside + beside.T
    assert_nan_where_stopped(values, np.sqrt(np.linalg.eigvalsh(matrices)[:, ::-1]))


def test_small_values_far_below_the_largest_are_within_rounding_of_it():
    # A square as far below as the second is known to 2⁻⁵¹ of the largest here, which would leave 2⁻²⁶ of its root.
    rng, falling = np.random.default_rng(8), np.array([1.0, 2.0**-13, 2.0**-26, 2.0**-30, 2.0**-39])
    U, V = (np.linalg.qr(rng.standard_normal((9, 5, 5)))[0] for _ in range(2))
    values, exponents = np.empty((9, 5)), np.empty(9, np.int64)
    assert plain(small.small_values)((U * falling) @ V, values, exponents) == 0
    assert np.all(np.abs(np.ldexp(values, exponents[:, np.newaxis]) - falling) <= 50 * EPS)


def assert_nan_where_stopped(values, exact):
    exact[STOPPED] = np.nan
    assert np.allclose(values, exact, rtol=1e-9, equal_nan=True)


def test_tridiagonal_matrices_are_over_half_the_exponent_of_their_largest_entry():
    exponents, diagonals, squares = np.empty(2, np.int64), np.empty((2, 3)), np.full((2, 3), np.nan)
    plain(gram.tridiagonals)(np.eye(3) * [[[2.0**7]], [[2.0**-9]]], diagonals, squares, exponents)
    assert exponents.tolist() == [4, -4]
    assert diagonals.tolist() == [[0.5] * 3, [0.5] * 3]
    assert squares.tolist() == [[0.0] * 3] * 2


def test_a_tridiagonal_matrix_is_lifted_by_2_to_the_minus_46_of_its_largest_entry():
    q, e = np.zeros((2, 2 * simd.WIDTH))
    assert plain(gram._factor)(1, 2, np.array([4.0, 2.0]), np.array([1.0, 0.0]), q, e) == 2.0**-44
    assert q[1] == 4 + 2.0**-44
    assert e[1] == 1 / q[1]
    assert q[simd.WIDTH + 1] == 2 + 2.0**-44 - e[1]
    assert plain(gram._factor)(1, 2, np.array([1.0, 0.25]), np.array([1.0, 0.0]), q, e) == -1
    for beyond in ([np.inf, 1.0], [1.0, np.inf], [1.0, np.nan]):
        assert plain(gram._factor)(1, 2, np.array(beyond), np.zeros(2), q, e) == -1


def test_lanes_without_a_tridiagonal_matrix_take_no_step(monkeypatch):
    monkeypatch.setattr(dqds, "_step", None)  # which compiled code has within it
    values = np.empty((1, 3))
    assert plain(gram.tridiagonal_values)(np.array([[1.0, 4.0, 9.0]]), np.zeros((1, 3)), values) == 0
    assert values[0].tolist() == pytest.approx([3.0, 2.0, 1.0], rel=1e-12)


def test_lanes_that_reach_the_limit_of_steps_are_told_from_those_that_are_done(monkeypatch):
    # Two entries that hang together in all lanes but the first, and no step allowed; 2 × 2 blocks need none.
    monkeypatch.setattr(dqds, "NBIG", 0)
    q, e, state = np.ones(4 * simd.WIDTH), np.zeros(4 * simd.WIDTH), np.full(dqds.STATE, np.nan)
    e[1 : simd.WIDTH] = e[simd.WIDTH + 1 : 2 * simd.WIDTH] = 1.0
    plain(dqds.dqds)(3, q, e, np.empty_like(q), np.empty_like(q), np.empty_like(q), state, 0.0)
    assert state[dqds.N0 : dqds.N0 + simd.WIDTH].tolist() == [-1] + [2] * 7
