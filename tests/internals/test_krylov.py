"""Block Krylov: what its values owe, what it holds them to, and how it shares out its work."""

import numpy as np
import pytest

from lowrank_core import spectrum, truncate, update_with_spectrum
from lowrank_core._linalg import krylov, thresholds
from lowrank_core._linalg import routes as decompose
from lowrank_core._linalg.threads import Team
from tests.internals.test_routes import kinds, made, truth


def head(values):
    return np.cumsum(np.asarray(values, dtype=np.float64) ** 2)


@kinds
@pytest.mark.parametrize("shape", [(300, 200), (200, 300)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rank", [1, 12, 40])
def test_krylov_is_attained_and_within_what_it_owes(kind, shape, dtype, rank):
    update = made(kind, shape, dtype)
    found = spectrum(update, rank=rank, method="krylov")
    exact = head(truth(update))
    assert np.all(head(found.values) <= exact[:rank] * (1 + 1e-13))
    assert head(found.values)[-1] <= found.norm**2 * (1 + 1e-15)
    owed = 1e-4 * min(exact[rank - 1], max(exact[-1] - exact[rank - 1], 1e-6 * exact[-1]))
    assert exact[rank - 1] - head(found.values)[-1] <= owed
    assert found.norm == pytest.approx(np.sqrt(exact[-1]), rel=1e-14)
    # The factors in hand have these very values, and their error is N² − H_k.
    best = truncate(update, rank, method="krylov")
    assert np.allclose(spectrum(best).values, found.values, rtol=0, atol=1e-13 * found.norm)
    lost = np.linalg.norm(update - best.to_dense()) ** 2
    assert lost == pytest.approx(found.norm**2 - head(found.values)[-1], abs=1e-13 * found.norm**2)


@pytest.mark.parametrize("shape", [(150, 120), (128, 128), (40, 70)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("piece", [64, 512])
@pytest.mark.parametrize("workers", [1, 3])
def test_products_with_a_matrix_whole_and_in_pieces(shape, dtype, piece, workers, monkeypatch):
    monkeypatch.setattr(krylov, "PIECE", piece)
    update = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    rows = np.random.default_rng(1).standard_normal((3, min(shape)))
    with Team(workers) as team:
        X, _ = krylov._prepared(update, team)
        image, pulled = X.applied(rows)
        assert np.array_equal(X.images(rows), image)
    tall = np.ldexp((update if shape[0] >= shape[1] else update.T).astype(np.float64), -X.exponent)
    eps = np.finfo(dtype).eps
    sizes = np.abs(rows) @ np.abs(tall.T)
    assert np.all(np.abs(image - rows @ tall.T) <= sum(shape) * eps * sizes)
    assert np.all(np.abs(pulled - rows @ tall.T @ tall) <= 2 * sum(shape) * eps * (sizes @ np.abs(tall)))


@pytest.mark.parametrize("shape", [(1300, 90), (90, 1300), (1025, 1030)])
def test_krylov_has_the_same_bits_on_any_number_of_threads(shape, monkeypatch):
    update = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
    found = []
    for workers in (1, 2, 5):
        monkeypatch.setattr(krylov, "as_workers", lambda _, workers=workers: workers)
        part = truncate(update, 6, method="krylov")
        found.append(part.B.tobytes() + part.A.tobytes())
    assert len(set(found)) == 1


def grown_space(update, blocks):
    """Grow a search space by so many blocks; give the update as it takes it, and its Ritz values and vectors."""
    X, _ = krylov._prepared(update, Team(1))
    space = krylov._Space(X, X.columns)
    start = np.random.default_rng(3).standard_normal((krylov.BLOCK, X.columns))
    space.extend(krylov._orthonormal(start, space.Q)[0])
    for _ in range(blocks - 1):
        space.extend(space.pulled)
    return X.held.astype(np.float64), space, *space.ritz()


def missing_before_and_after(update, space, vectors, step):
    """Tell how much of the leading energy the leading vectors miss without a step, and with it."""
    rank = len(step)
    exact = head(np.linalg.svd(update, compute_uv=False))[rank - 1]
    basis = vectors[:, :rank].T @ space.Q
    return [
        exact - np.linalg.norm(update @ np.linalg.qr(rows.T)[0]) ** 2 for rows in (basis, basis + step @ space.pulled)
    ]


@pytest.mark.parametrize("power", [0.5, 1.0])
@pytest.mark.parametrize("blocks", [3, 4])
def test_a_step_that_costs_no_product_finds_more_than_half_of_what_is_missing(power, blocks):
    update = update_with_spectrum((1.0 + np.arange(300)) ** -power, (310, 300), rng=0)
    update, space, squares, vectors = grown_space(update, blocks)
    step, estimate = krylov._free_step(space, squares, vectors, 20)
    before, after = missing_before_and_after(update, space, vectors, step)
    assert after < before / 2
    assert after < estimate < 10 * before


def test_a_step_adds_no_rounding_to_directions_smaller_than_it():
    # Energies down to 2^-58 of the largest, beside residuals of 2^-24 that are nothing but rounding in float32.
    update = update_with_spectrum(2.0 ** -np.arange(300.0), (310, 300), rng=0).astype(np.float32)
    update, space, squares, vectors = grown_space(update, 2)
    step, estimate = krylov._free_step(space, squares, vectors, 30)
    assert not step.any()
    _, after = missing_before_and_after(update, space, vectors, step)
    assert after <= estimate


def test_what_is_outside_a_young_space_is_taken_to_be_as_large_as_its_last_block():
    # The value half a block beyond the last wanted is far from what it will be: by that alone a step would leave a
    # hundredth of what it leaves.
    update, space, squares, vectors = grown_space(
        update_with_spectrum(1.0 / (1.0 + np.arange(600)), (600, 600), rng=0), 3
    )
    assert space.latest() > 2 * squares[64 + krylov.BLOCK // 2 - 1]
    step, estimate = krylov._free_step(space, squares, vectors, 64)
    _, after = missing_before_and_after(update, space, vectors, step)
    assert after < 4 * estimate


def test_krylov_finds_more_copies_of_a_value_than_its_block_is_wide():
    diagonal = np.zeros((400, 400), np.float32)
    diagonal[np.arange(150), np.arange(150)] = 1
    assert spectrum(diagonal, rank=120, method="krylov").values == pytest.approx(np.ones(120), abs=1e-12)
    step = update_with_spectrum(np.r_[np.ones(100), np.full(300, 0.01)], (400, 500), rng=0).astype(np.float32)
    found = spectrum(step, rank=90, method="krylov").values
    assert head(found)[-1] >= (1 - 2e-6) * head(spectrum(step).values)[89]


def test_copies_are_looked_for_only_where_a_block_of_values_lies_close_together(monkeypatch):
    looked, plain = [], krylov._more_is_found
    monkeypatch.setattr(krylov, "_more_is_found", lambda *a: looked.append(1) or plain(*a))
    falling = update_with_spectrum((1.0 + np.arange(200)) ** -0.5, (210, 200), rng=0)
    spectrum(falling, rank=krylov.BLOCK + 20, method="krylov")
    assert not looked
    # As many values as the block has columns, the smallest of them 0.76 of the largest in energy.
    close = np.r_[np.linspace(1.0, 0.87, krylov.BLOCK), np.geomspace(0.2, 0.001, 168)]
    spectrum(update_with_spectrum(close, (210, 200), rng=0), rank=krylov.BLOCK - 1, method="krylov")
    assert not looked
    spectrum(update_with_spectrum(close, (210, 200), rng=0), rank=krylov.BLOCK, method="krylov")
    assert looked


def test_auto_takes_krylov_for_few_values_of_a_large_matrix_and_gram_where_they_fall_slowly(monkeypatch):
    taken = []
    for name in ("krylov", "gram"):
        plain = getattr(decompose, name)
        monkeypatch.setattr(decompose, name, lambda *a, _f=plain, _n=name: taken.append(_n) or _f(*a))
    monkeypatch.setattr(thresholds, "KRYLOV_SMALLEST_SIDE", 256)
    steep = update_with_spectrum(np.exp2(-np.arange(256.0)), (300, 256), rng=0).astype(np.float32)
    slow = made("falling", (300, 256), "float32")
    assert np.allclose(spectrum(steep, rank=4).values, truth(steep)[:4], rtol=1e-4)
    assert taken == ["krylov"]
    taken.clear()
    assert np.allclose(spectrum(slow, rank=16).values, spectrum(slow).values[:16], rtol=1e-13)
    assert taken == ["krylov", "gram"]


def test_krylov_of_a_zero_update_and_of_rank_0():
    found = spectrum(np.zeros((40, 50), np.float32), rank=3, method="krylov")
    assert not found.values.any()
    assert found.norm == 0
    none = spectrum(np.ones((40, 50)), rank=0, method="krylov")
    assert none.values.shape == (0,)
    assert none.norm == pytest.approx(np.sqrt(2000), rel=1e-14)
    assert truncate(np.ones((40, 50)), 0, method="krylov").rank == 0


@pytest.mark.parametrize("shape", [(40, 60), (60, 40)])
@pytest.mark.parametrize("power", [-100, 100])
def test_krylov_of_float32_whose_squares_float32_does_not_hold(shape, power):
    update = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    found = spectrum(update, rank=5, method="krylov").values
    assert found == pytest.approx(np.linalg.svd(update.astype(np.float64), compute_uv=False)[:5], rel=1e-6)
    far = spectrum(np.ldexp(update, power), rank=5, method="krylov").values
    assert np.array_equal(far, np.ldexp(found, power))


def test_krylovs_seed_is_the_only_use_of_rng():
    update = made("power law", (90, 80))
    one, other = (spectrum(update, rank=5, method="krylov", rng=seed).values for seed in (1, 2))
    assert np.array_equal(one, spectrum(update, rank=5, method="krylov", rng=1).values)
    assert not np.array_equal(one, other)
    assert np.allclose(one, other, rtol=1e-4)
    assert np.array_equal(one, spectrum(update, rank=5, method="krylov", rng=np.random.default_rng(1)).values)
    assert np.array_equal(spectrum(update, rng=1).values, spectrum(update, rng=2).values)


def test_krylov_finds_copies_of_a_value_until_the_space_is_full():
    # A projection on 40 of 72 directions: two blocks of 32 hold 32 of the ones and leak nothing. The probe fills the
    # space up, and shows the other eight.
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((72, 40)))[0]
    found = spectrum(basis @ basis.T, rank=40, method="krylov").values
    assert np.all(np.abs(found - 1) <= 10 * 72 * 2.0**-52)


def test_a_krylov_space_that_would_be_too_large_gives_way_to_gram(monkeypatch):
    monkeypatch.setattr(thresholds, "KRYLOV_GIVES_UP", 0.1)
    matrix = np.random.default_rng(0).standard_normal((70, 60)).astype(np.float32)
    found = decompose.decompose(matrix, "krylov-or-gram", 50, 0)
    # All values, not the leading 50: those of a Gram matrix, and its factors with them.
    assert np.allclose(found.values, np.linalg.svd(matrix.astype(float), compute_uv=False), rtol=1e-7)
    B, A = found.factors(50)
    assert np.allclose(np.linalg.norm(B, axis=0), found.values[:50], rtol=1e-7)
    assert np.allclose(A @ A.T, np.eye(50), rtol=0, atol=1e-12)
